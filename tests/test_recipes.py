"""The papers' recipes: the numbers of the papers, and a run of each kind on a few small pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from budgetcl.assemble import make_parts
from budgetcl.configuration import compose
from budgetcl.loop import run
from budgetcl.records.record import Record

NAMES = ("imagenet2k_ci", "imagenet2k_di", "cglm", "cloc_online")
TINY = (
    "backbone.name=resnet18", "reference.backbone.name=resnet18", "backbone.weights=null",
    "backbone.classifier=false", "stream.size=32", "stream.resize=36",
    "precision=fp32",
)  # fmt: skip


def recipe(name, *overrides):
    return compose([f"experiment={name}", "stream.path=somewhere.parquet", *overrides])


@pytest.mark.parametrize(("name", "updates"), [("imagenet2k_ci", 400), ("imagenet2k_di", 400), ("cglm", 100)])
def test_a_recipe_of_budgetcl_has_its_numbers(name, updates):
    cfg = recipe(name)
    assert (cfg.budget.updates, cfg.learner.batch, cfg.stream.steps) == (updates, 1500, 20)
    assert dict(cfg.optimiser) == {
        "_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9, "nesterov": False,
        "weight_decay": 0,
    }  # fmt: skip
    assert cfg.schedule._target_.endswith("Linear")
    assert (cfg.stream.size, cfg.stream.resize, cfg.stream.augment) == (224, 256, "random_resized_crop")
    assert (cfg.learner.backbone.name, cfg.learner.backbone.weights) == ("resnet50", "IMAGENET1K_V2")
    assert cfg.learner.backbone.classifier is name.startswith("imagenet2k")  # whose pretraining classes are ImageNet's
    assert (cfg.precision, cfg.method.name) == ("bf16", "naive")


def test_the_recipe_of_evalocl_has_its_numbers():
    cfg = recipe("cloc_online")
    assert (cfg.budget.updates, cfg.learner.batch, cfg.stream.chunk, cfg.recent) == (1, 256, 128, 128)
    assert (cfg.sampler._target_.split(".")[-1], cfg.sampler.share) == ("HalfRecent", 0.5)
    assert (cfg.optimiser.lr, cfg.optimiser.momentum, cfg.optimiser.weight_decay) == (0.005, 0.9, 0.0001)
    assert cfg.schedule._target_.endswith("Constant")
    assert 0 in cfg.stream.shifts


@pytest.mark.parametrize("name", NAMES)
def test_the_yardstick_is_the_same_network_without_its_weights(name):
    cfg = recipe(name)
    same = ("_target_", "name", "embed", "options")
    assert [cfg.reference.backbone[key] for key in same] == [cfg.backbone[key] for key in same]
    assert cfg.reference.backbone.weights is None


@pytest.mark.parametrize("name", NAMES)
def test_a_method_and_a_number_may_still_be_chosen(name):
    cfg = recipe(name, "method=kd_mse", "optimiser.lr=0.01", "precision=fp32")
    assert (cfg.method.name, cfg.optimiser.lr, cfg.precision) == ("kd_mse", 0.01, "fp32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    rows = ["path,label,time,split"]
    for i in range(48):
        Image.fromarray(random.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        split = "test" if i % 6 == 0 else "pretrain" if i < 12 else "train"
        rows.append(f"{i}.png,{'abcd'[i // 12 if i < 24 else i % 4]},2020-01-01T00:00:{i:02d},{split}")
    (folder / "table.csv").write_text("\n".join(rows))
    return folder / "table.csv"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("imagenet2k_ci", ("stream.steps=3", "budget.updates=2", "reference.batch=4")),
        (
            "cloc_online",
            ("stream.chunk=4", "stream.shifts=[0,4]", "stream.shift=4", "recent=4", "reference.batch=8",
             "stream.order=time"),
        ),
    ],
)  # fmt: skip
def test_a_recipe_runs(pictures, name, settings, tmp_path):
    cfg = compose([f"experiment={name}", f"stream.path={pictures}", *TINY, *settings])
    parts = make_parts(cfg)
    record = Record(tmp_path / "record", "", {}, parts.source.stream)
    results = run(parts.source, parts.learner, parts.compute, record, 0)
    assert results.info["audit"]["agrees"]
    assert (np.array(results.steps["updates"]) >= 1).all()
    assert all(bool(torch.isfinite(p).all()) for p in parts.learner.network.parameters())
