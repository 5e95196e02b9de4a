"""The cost of tuning stands beside the runs that have what it chose, and beside no other."""

import csv
import json

import pytest

from budgetcl.errors import UserError
from budgetcl.report.page import report
from budgetcl.report.tunings import tunings

CONFIG = (
    "method:\n  name: {method}\noptimiser:\n  lr: {rate}\nstream:\n  order: class\n  seed: {{seed}}\nmetrics:\n"
    "  ahead:\n    warmup: 0.1\nlearner:\n  batch: 8\n"
)


def entry(method="er", rate=0.1, stream="classes", updates=10, flops=7e9):
    return {
        "method": method, "stream": stream, "settings": {"optimiser.lr": rate}, "flops": flops,
        "budget": {"updates": updates, "flops": None},
    }  # fmt: skip


@pytest.fixture
def tuning_flops(tmp_path, streams, write_record):
    """(entries) -> method -> what the report's summary says that tuning cost."""
    for method, group in (("naive", "baseline"), ("er", "sampling")):
        config = CONFIG.format(method=method, rate=0.1)
        write_record(tmp_path / method, streams["classes"](0), method, group, 0, config=config)

    def make(*entries):
        (tmp_path / "tune").mkdir()
        (tmp_path / "tune" / "tuning.json").write_text(json.dumps(entries))
        report([tmp_path], None)
        with open(tmp_path / "summary.csv", encoding="utf-8") as file:
            return {row["method"]: row.get("tuning_flops") for row in csv.DictReader(file)}

    return make


def test_the_run_with_the_chosen_settings_shows_what_choosing_cost(tuning_flops, tmp_path):
    assert tuning_flops(entry()) == {"er": "7000000000.0", "naive": ""}
    assert "FLOPs of tuning" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("other", [{"rate": 0.3}, {"stream": "timed"}, {"method": "fifo"}])
def test_what_was_tuned_otherwise_is_not_shown(tuning_flops, tmp_path, other):
    assert set(tuning_flops(entry(**other)).values()) == {None}
    assert "FLOPs of tuning" not in (tmp_path / "report.md").read_text()


def test_tuning_at_the_runs_own_budget_is_preferred(tuning_flops):
    assert tuning_flops(entry(updates=40, flops=1e9), entry(), entry(updates=5, flops=2e9))["er"] == "7000000000.0"


def test_a_damaged_file_is_said(tmp_path):
    (tmp_path / "tuning.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        tunings([tmp_path])
