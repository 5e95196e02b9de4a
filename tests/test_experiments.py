"""Presets: each composes, also on the papers' own data, and names methods and streams that there are."""

from pathlib import Path

import pytest
import yaml

from budgetcl.assemble import build
from budgetcl.cli import main
from budgetcl.configuration import compose, conf_folder
from budgetcl.controls import KINDS
from budgetcl.records.record import find

PRESETS = sorted(path.stem for path in (conf_folder() / "experiment").glob("*.yaml"))
METHODS = {path.stem for path in (conf_folder() / "method").glob("*.yaml")}
TABLES = ("sampling", "distillation", "head_correction", "partial_fine_tuning", "time_steps", "budgets", "online",
          "unique_samples")  # fmt: skip


def swept(preset):
    """The lists that a preset runs through, as text."""
    data = yaml.safe_load((conf_folder() / "experiment" / f"{preset}.yaml").read_text(encoding="utf-8"))
    return data.get("hydra", {}).get("sweeper", {}).get("params", {})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_and_has_one_allowance(preset):
    cfg = compose([f"experiment={preset}"])
    budget = build(cfg.budget)
    assert sum(value is not None for value in (budget.updates, budget.passes, cfg.budget.flops)) == 1
    assert cfg.stream._target_.startswith("budgetcl.streams.")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_methods_exist_and_its_first_line_describes_it(preset):
    methods = [name for name in str(swept(preset).get("method", "")).split(",") if name]
    assert set(methods) <= METHODS
    assert len(set(methods)) == len(methods)
    lines = (conf_folder() / "experiment" / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert len(lines[1]) > 20
    assert lines[1].startswith("# ")


@pytest.mark.parametrize("preset", TABLES)
def test_a_table_of_the_papers_has_its_command_and_reported_seeds(preset):
    text = (conf_folder() / "experiment" / f"{preset}.yaml").read_text(encoding="utf-8")
    assert f"budgetcl run -m experiment={preset}" in text
    assert swept(preset)["seed"] == "range(0,5)"
    assert "method" in swept(preset)


@pytest.mark.parametrize("preset", [name for name in TABLES if name != "unique_samples"])
def test_a_table_has_its_controls_behind_all_methods_and_scratch_beside_them(preset):
    params = swept(preset)
    assert next(iter(params)) == "control"  # hydra's outermost loop
    assert params["control"].split(",") == ["null", *KINDS]
    assert params["method"].split(",")[:2] == ["naive", "scratch"]
    assert compose([f"experiment={preset}"]).unlimited_passes < 20  # which are meant for one step


@pytest.mark.parametrize("preset", TABLES)
@pytest.mark.parametrize(("stream", "updates"), [("imagenet2k_ci", 400), ("cglm", 100), ("cloc", 1)])
def test_a_table_moves_to_the_papers_data_by_one_group(preset, stream, updates):
    cfg = compose([f"experiment={preset}", f"stream={stream}"])
    assert cfg.stream._target_ == "budgetcl.streams.table.table"
    assert cfg.reference.batch == {"cloc": 256}.get(stream, 1500)  # what the stream sets is the stream's
    assert cfg.budget.updates == (None if preset == "time_steps" else updates)


def test_a_preset_is_a_whole_table_and_the_command_line_may_narrow_it(tmp_path):
    tiny = ("stream.samples=96", "stream.prefix=400", "stream.classes=20", "stream.burst=6", "stream.shifts=[0,16,32]",
            "stream.shift=32", "stream.retention=16")  # fmt: skip
    narrowed = ("method=majority", "seed=3", "control=null", f"output={tmp_path}")
    assert main(["run", "-m", "experiment=online", *tiny, *narrowed]) == 0
    runs = [run.info for run in find([Path(tmp_path)])]
    assert sorted(info["budget"]["updates"] for info in runs) == [2, 12]
    assert {info["seed"] for info in runs} == {3}
