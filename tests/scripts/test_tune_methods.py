"""The page of what tuning chose, from made-up numbers, and whether the configuration holds what the page says."""

import json
import re
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from budgetcl.configuration import compose

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tuning(monkeypatch, tmp_path):
    """The script, with a folder of its own for what was found."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import tune_methods

    monkeypatch.setattr(tune_methods, "OUTPUT", tmp_path)
    return tune_methods


def entry(method, **settings):
    return {
        "method": method,
        "score": 0.714,
        "settings": settings,
        "overrides": [f"{key}={value}" for key, value in settings.items()],
        "edges": ["optimiser.lr"],
        "runs": [{}] * 14,
        "learning_flops": 3e12,
        "predict_flops": 5e11,
    }


def test_the_page_says_what_was_found_and_what_the_configuration_does_not_hold(tuning, tmp_path):
    (tmp_path / "tune" / "glyphs").mkdir(parents=True)
    found = [
        entry("naive", **{"optimiser.lr": 77.0}),
        entry("kd_mse", **{"optimiser.lr": 77.0, "objective.weight": 66.0}),
        entry("nmc"),
    ]
    (tmp_path / "tune" / "glyphs" / "tuning.json").write_text(json.dumps(found))
    page = tuning.page()
    assert "| naive | 71.4 | `optimiser.lr=77.0` | optimiser.lr | 14 | 3,000 | 500 |" in page
    assert "| nmc | 71.4 | nothing to choose |" in page
    differing = [line for line in page.splitlines() if line.startswith("- ")]
    assert len(differing) == 3
    assert any("kd_mse on glyphs: objective.weight=66.0 was chosen" in line for line in differing)
    assert "Not tuned: ace," in page


def chosen():
    """(stream, method, key, value) of each choice on the page."""
    for section in (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) > 4 and cells[3].startswith("`"):
                for setting in re.findall(r"`([^`]+)`", cells[3]):
                    key, value = setting.split("=")
                    yield section.split("`")[1], cells[1], key, yaml.safe_load(value)


def test_the_configuration_holds_what_tuning_chose(as_it_ships):
    choices = list(chosen())
    assert {stream for stream, *_ in choices} == {"glyphs", "uploads"}
    assert len({method for _, method, *_ in choices}) > 50
    for stream, method, key, value in choices:
        cfg = as_it_ships(f"stream={stream}", f"method={method}")
        assert OmegaConf.select(cfg, key) == value, (stream, method, key)


@pytest.mark.parametrize("stream", ["glyphs", "uploads"])
def test_a_stream_has_a_rate_for_methods_that_were_not_tuned_and_an_override_has_the_last_word(stream):
    cfg = compose([f"stream={stream}", "method.name=mine"])
    assert cfg.optimiser.lr == cfg.rates.default
    assert compose([f"stream={stream}", "optimiser.lr=0.5"]).optimiser.lr == 0.5
