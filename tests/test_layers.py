"""Who may import whom: read from the source, so that no import slips in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import budgetcl

PACKAGE = Path(budgetcl.__file__).parent
HEAVY = {
    "hydra",
    "omegaconf",
    "wandb",
    "pandas",
    "pyarrow",
    "torchvision",
    "torchmetrics",
    "matplotlib",
    "numba",
    "rich",
}

# The first matching prefix decides; a module may import modules of its own layer and of lower ones.
LAYERS = [
    ("budgetcl.errors", 0), ("budgetcl.randomness", 0), ("budgetcl.metrics", 0), ("budgetcl.budget.formulas", 0),
    ("budgetcl.budget.ledger", 0), ("budgetcl.streams.stream", 0), ("budgetcl.budget", 1), ("budgetcl.memory", 1),
    ("budgetcl.objectives", 1), ("budgetcl.companions", 1), ("budgetcl.models", 1), ("budgetcl.streams", 1),
    ("budgetcl.assets", 1), ("budgetcl.learners", 2), ("budgetcl.records", 2), ("budgetcl.loop", 3),
    ("budgetcl.testing", 3), ("budgetcl.tuning", 3), ("budgetcl.report", 4), ("budgetcl.data", 4),
    ("budgetcl.foresight", 5), ("budgetcl.late", 5), ("budgetcl.configuration", 5), ("budgetcl.assemble", 5),
    ("budgetcl.run", 5), ("budgetcl.dry_run", 5), ("budgetcl.sweep", 5), ("budgetcl.controls", 5),
    ("budgetcl.tune_command", 5), ("budgetcl.cli", 5), ("budgetcl.__main__", 5), ("budgetcl", -1),
]  # fmt: skip


def layer(module):
    return next((number for prefix, number in LAYERS if module == prefix or module.startswith(prefix + ".")), 5)


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path, top_only=False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("budgetcl"))


ALL = dict(modules())


@pytest.mark.parametrize("module", sorted(ALL))
def test_a_module_imports_only_its_own_layer_and_lower_ones(module):
    for imported in imports(ALL[module]):
        if imported in ALL and imported != "budgetcl":
            assert layer(imported) <= max(layer(module), 0), f"{module} imports {imported}"


def test_only_the_command_line_imports_hydra():
    for module, path in ALL.items():
        names = {name.split(".")[0] for name in imports(path)}
        if layer(module) < 5:
            assert not names & {"hydra", "omegaconf"}, module


def test_reports_know_nothing_of_learners_and_records_only_of_the_lowest_layer():
    for module, path in ALL.items():
        used = {name for name in imports(path) if name in ALL}
        if module.startswith("budgetcl.report"):
            assert not {u for u in used if u.startswith(("budgetcl.learners", "budgetcl.loop", "budgetcl.models"))}, (
                module
            )
            assert "torchvision" not in {name.split(".")[0] for name in imports(path)}, module
        if module.startswith("budgetcl.records"):
            assert all(layer(u) <= 0 or u.startswith("budgetcl.records") for u in used), module


def test_heavy_libraries_are_imported_where_they_are_used():
    for module, path in ALL.items():
        if layer(module) < 5 and not module.startswith(("budgetcl.metrics.", "budgetcl.models.", "budgetcl.streams.")):
            heavy = {name.split(".")[0] for name in imports(path, top_only=True)} & HEAVY
            assert not heavy, f"{module} imports {heavy} at its top"


def test_the_metric_library_pulls_in_torch_and_numpy_only():
    code = (
        "import sys; from budgetcl.metrics import near_future_accuracy; "
        f"print(sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
