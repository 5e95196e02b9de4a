from types import SimpleNamespace

import pytest
import torch

from budgetcl import foresight
from budgetcl.budget.allowance import Budget
from budgetcl.cli import main
from budgetcl.foresight import LIGHT, warning


class Steps(SimpleNamespace):
    def __len__(self):
        return self.steps


def parts(samples=1000, steps=10, shape=(3, 32, 32), device="cpu", updates=None, passes=None, flops=None, batch=32):
    return SimpleNamespace(
        source=SimpleNamespace(stream=Steps(samples=samples, steps=steps), pixels=SimpleNamespace(shape=shape)),
        compute=SimpleNamespace(
            device=torch.device(device),
            prices=None,
            reference=SimpleNamespace(batch=batch),
            budget=Budget(updates=updates, passes=passes, flops=flops),
        ),
    )


@pytest.fixture
def estimated(monkeypatch):
    """Makes the estimate return so many hours, and counts how often it was asked."""
    asked = []

    def hours(value):
        def estimate(cfg, method, seconds, prices, source):
            asked.append(method)
            return SimpleNamespace(seconds=3600 * value)

        monkeypatch.setattr(foresight, "estimate", estimate)
        return asked

    return hours


CFG = SimpleNamespace(method=SimpleNamespace(name="naive"), stream=SimpleNamespace(size=32))
LARGE = {"samples": int(LIGHT / (3 * 3 * 32 * 32)) + 1, "passes": 3}


def test_a_run_of_hours_says_so_and_what_makes_it_shorter(estimated):
    estimated(12.34)
    said = warning(CFG, parts(**LARGE))
    assert "estimated at 12.3 hours without a GPU" in said
    for hint in ("stream.size", "budget.passes (now 3)", "budgetcl price"):
        assert hint in said
    assert "\n" not in said


def test_a_run_of_less_than_an_hour_says_nothing(estimated):
    asked = estimated(0.9)
    assert warning(CFG, parts(**LARGE)) is None
    assert asked == ["naive"]


def test_small_runs_and_runs_on_a_gpu_are_rehearsed_but_not_estimated(estimated, monkeypatch):
    asked, rehearsed = estimated(5), []
    monkeypatch.setattr(foresight, "rehearse", lambda *given: rehearsed.append(given))
    assert warning(CFG, parts(samples=4000, passes=3)) is None
    assert len(rehearsed) == 1
    assert warning(CFG, parts(**LARGE, device="cuda")) is None
    assert len(rehearsed) == 2
    assert asked == []


@pytest.mark.parametrize("light", [0, LIGHT])
def test_what_a_run_cannot_pay_for_is_refused_before_anything_is_written(light, monkeypatch, tiny, tmp_path, capfd):
    """The first allowances pay for five updates, the third one for none."""
    monkeypatch.setattr(foresight, "LIGHT", light)
    overrides = tiny("glyphs", "kd_mse", "budget.updates=[5,5,0.1]").overrides
    assert main(["run", *overrides, f"output={tmp_path}"]) == 2
    assert "step 2: the allowance" in capfd.readouterr().err
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize(("light", "what"), [(0, "estimate"), (LIGHT, "rehearse")])
def test_a_component_that_does_not_run_on_blank_images_is_said_and_no_more(light, what, monkeypatch, tiny):
    def fails(*given):
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(foresight, "LIGHT", light)
    monkeypatch.setattr(foresight, what, fails)
    parts = tiny("glyphs", "naive")
    assert "cannot be foreseen: ZeroDivisionError: by design" in warning(parts.cfg, parts)


def test_every_kind_of_allowance_is_looked_at(estimated, monkeypatch):
    estimated(5)
    large = parts(steps=1000, updates=int(LIGHT / (1000 * 32 * 3072)) + 1)
    assert "budget.updates" in warning(CFG, large)
    large.compute.budget.updates = 1
    monkeypatch.setattr(foresight, "rehearse", lambda *given: None)
    assert warning(CFG, large) is None
    large.compute.budget.updates = (1, 2, 30)  # the last one stands for all others
    assert "budget.updates (now 1 to 30)" in warning(CFG, large)
    assert "budget.flops (now 1e+12)" in warning(CFG, parts(flops=10**12))


def test_the_estimate_of_a_real_run_goes_by_its_size(monkeypatch, tiny):
    from budgetcl.assemble import make_parts

    cfg = tiny("glyphs", "naive").cfg
    monkeypatch.setattr(foresight, "LIGHT", 0)
    assert warning(cfg, make_parts(cfg)) is None
    monkeypatch.setattr(foresight, "HOUR", 1e-9)
    said = warning(cfg, make_parts(cfg))
    assert "hours without a GPU" in said
    assert "stream.size" not in said
