"""Write docs/methods.md: every method, where its idea comes from, what it costs, and which tests prove it.

    python scripts/make_methods_table.py            some minutes: each method is sent through a stream by a dry run
    python scripts/make_methods_table.py --text     keeps the prices that the page has, measures those of new methods
    python scripts/make_methods_table.py --check    says whether all but the prices is up to date

Nothing is typed in here but a line about each group. What a method is comes from its yaml; the paper from the
docstrings of the components that it chooses, or from the yaml's own comment; the tests are those that name these
components, or the method itself. Prices come from the protocol on blank images (budgetcl/dry_run.py), over the whole of
the embedded stream `glyphs` as it is by default.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from budgetcl.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CONF, TESTS, PAGE = ROOT / "conf", ROOT / "tests", ROOT / "docs" / "methods.md"
GROUPS = {
    "baseline": "What all others are compared with.",
    "sampling": "Which of the samples seen an update learns from, and which are kept.",
    "distillation": "Stay near what an earlier network answered.",
    "head": "The last layer, its loss, and corrections of it after a step.",
    "partial": "Train a part of the network: cheaper updates, so more of them.",
    "regulariser": "A penalty on how far the weights move.",
    "averaging": "Means of weights, and resets between steps.",
    "schedule": "Learning rates and optimisers.",
    "online": "For streams that are predicted before they are revealed.",
    "frozen": "No gradient descent through a backbone; what predictions cost beyond one forward pass is metered.",
    "control": "Rows to compare with. More controls of any method: `control=uncharged|same_updates|unlimited`.",
    "blind": "Never see an image: what the labels' order alone gives away.",
}
INTRODUCTION = """# Methods

Made by `python scripts/make_methods_table.py`; the prices are those of a dry run on `stream=glyphs`, seed 0.

- **update**: everything that learning costs (teachers, scoring, calibration and penalties included), by the number of
  updates; a plain update, that of `naive`, is 1.
- **updates**: how many a step affords on average.
- **spent**: of the allowances. What no longer pays for an update is forfeited.
- **prediction**: FLOPs of one answer; naive's is 1.
- **stored**: MB kept between two steps, at the end of the stream: images, labels, networks, companions.
- **-**: nothing to count, or a method that wants another stream (`recent_mode` a tuning prefix).
- **paper**: as the docstrings of what the method chooses cite it. Where a method departs from its paper, they say so.
- **tests**: those that name what the method chooses. Beside them, every method goes through `tests/test_testing.py`
  (price truth, determinism, resume, causality), and every key of every yaml through `tests/test_options.py`.
"""
HEADINGS = ("method", "what it does", "paper", "update", "updates", "spent", "prediction", "stored", "tests")
MEASURED = slice(3, 8)
NOT_MEASURED, REFUSED = ("?",) * 5, ("-",) * 5
_CITATION = re.compile(r"\(([^()]*(?:\b(?:18|19|20)\d\d\b|arXiv)[^()]*)\)")
_FOR_ALL = ("test_testing.py", "test_options.py", "test_causality.py", "test_docs.py")


# --- what stands in the code ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """What can be read of a method without running it.

    Attributes:
        name: of its yaml.
        group: what it belongs to.
        does: the yaml's description.
        paper: what is cited.
        tests: files, relative to the project's root.
    """

    name: str
    group: str
    does: str
    paper: str
    tests: tuple[str, ...]


def methods() -> list[Method]:
    """Return all methods, by group and name, naive first."""
    found = [_method(path) for path in sorted((CONF / "method").glob("*.yaml"))]
    order = list(GROUPS)
    return sorted(found, key=lambda method: (order.index(method.group), method.name))


def _method(path: Path) -> Method:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    does, parts = _description(path), list(_parts(content))
    cited = [citation for part in reversed(parts) for citation in _citations(part)] or _CITATION.findall(does)
    papers = dict.fromkeys(paper for citation in cited for paper in citation.split("; "))
    return Method(path.stem, content["method"]["group"], does, "; ".join(papers) or "-", _tests(path.stem, parts))


def _parts(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the components that a method chooses; without any, those that it sets; naive: what is always chosen."""
    chosen = [
        entry
        for default in content.get("defaults", ())
        for key, choice in default.items()
        for entry in _targets(key.removeprefix("override ").strip("/"), choice)
    ]
    changed = content.keys() - {"method", "defaults"} or {"sampler", "objective"}
    # The learner by itself is no idea of a paper.
    yield from chosen or [
        (f"{key}/{_plain()[key]}", target)
        for key in sorted(changed - {"learner"})
        for target in _listed(key, _plain()[key])
    ]


def _targets(group: str, choice: str) -> Iterator[tuple[str, str]]:
    """Yield what a choice is made of, without what the plain learner has too."""
    plain = {target for key, value in _plain().items() if value != choice for target in _listed(key, value)}
    for target in _listed(group, choice):
        if target not in plain:
            yield f"{group}/{choice}", target


@functools.cache
def _listed(group: str, choice: str) -> tuple[str, ...]:
    path = CONF / group / f"{choice}.yaml"
    return tuple(re.findall(r"_target_: (\S+)", path.read_text(encoding="utf-8"))) if path.exists() else ()


@functools.cache
def _plain() -> dict[str, str]:
    defaults = yaml.safe_load((CONF / "run.yaml").read_text(encoding="utf-8"))["defaults"]
    return {key: value for entry in defaults if isinstance(entry, dict) for key, value in entry.items()}


def _description(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line[2:] for line in lines if line.startswith("# ") and "@package" not in line)


def _citations(part: tuple[str, str]) -> list[str]:
    """Return what the summary line of a component's docstring cites, else the first citation below or of its module."""
    choice, target = part
    if not target.startswith("budgetcl."):
        return _CITATION.findall(_description(CONF / f"{choice}.yaml"))
    module, name = target.rsplit(".", 1)
    tree = _tree(module)
    own = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    said = ast.get_docstring(own) or ""
    summary, text = said.partition("\n\n")[0], said.partition("\nArgs:")[0]
    for where, most in ((summary, None), (text, 1), (ast.get_docstring(tree) or "", 1)):
        if found := _CITATION.findall(" ".join(where.split())):
            return found[:most]
    return []


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))


def _tests(method: str, parts: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return the files of tests that name one of the components, or else the method, or else all methods.

    Where those that mirror the component's package name it, these are meant; else any are.
    """
    found = set[str]()
    for module, name in (target.rsplit(".", 1) for _, target in parts):
        named = {path for path, text in _test_files().items() if module in text and re.search(rf"\b{name}\b", text)}
        mirror = "tests/" + "/".join(module.split(".")[1:-1]) + "/"
        found |= {path for path in named if path.startswith(mirror)} or named
    found = found or {
        path for path, text in _test_files().items() if re.search(rf"method={method}\b|[\"']{method}[\"']", text)
    }
    return tuple(sorted(found)) or ("tests/test_testing.py",)


@functools.cache
def _test_files() -> dict[str, str]:
    paths = (path for path in TESTS.rglob("test_*.py") if path.name not in _FOR_ALL)
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(paths)}


# --- what a dry run says ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a method takes.

    Attributes:
        updates: a step, on average.
        learning: FLOPs of the whole stream.
        spent: share of the allowances.
        prediction: FLOPs of one answer.
        stored: bytes by what is stored.
    """

    updates: float
    learning: int
    spent: float
    prediction: float
    stored: Mapping[str, int]


def cost(method: str) -> Cost:
    """Send a method through `glyphs` on blank images."""
    from budgetcl.assemble import make_parts
    from budgetcl.configuration import compose
    from budgetcl.dry_run import simulate

    cfg = compose([f"method={method}"])
    parts = make_parts(cfg)
    tally = simulate(parts, cfg.seed, cfg.query)
    flops = Counter[str]()
    for category, spent in zip(tally.ledger["category"], tally.ledger["flops"]):
        flops[category] += int(spent)
    predicting = flops.pop("predict", 0)
    steps = len(tally.steps["updates"])
    return Cost(
        sum(tally.steps["updates"]) / steps,
        flops.total(),
        sum(tally.steps["spent"]) / sum(tally.steps["allowance"]),
        predicting / tally.rows,
        dict(parts.learner.nbytes()),
    )


def measured(costs: Mapping[str, Cost]) -> dict[str, tuple[str, ...]]:
    """Return the measured columns of each method."""
    naive = costs["naive"]
    plain = naive.learning / naive.updates
    return {
        name: (
            f"{c.learning / c.updates / plain:#.3g}" if c.updates else "-",
            f"{c.updates:.3g}" if c.updates < 1000 else f"{c.updates:,.0f}",
            f"{c.spent:.0%}",
            f"{c.prediction / naive.prediction:#.3g}",
            f"{sum(c.stored.values()) / 1e6:.2f}",
        )
        for name, c in costs.items()
    }


# --- the page ---------------------------------------------------------------------------------------------------------


def rows(found: Sequence[Method], prices: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the cells of each method's line."""
    return {
        method.name: (
            f"`{method.name}`",
            method.does.rstrip("."),
            method.paper,
            *prices[method.name],
            "<br>".join(f"[{path.removeprefix('tests/')}](../{path})" for path in method.tests),
        )
        for method in found
    }


def page(found: Sequence[Method], prices: Mapping[str, Sequence[str]]) -> str:
    """Return docs/methods.md."""
    text, cells = INTRODUCTION, rows(found, prices)
    for group in dict.fromkeys(method.group for method in found):
        lines = [HEADINGS, ("---", "---", "---", *["---:"] * 5, "---")]
        lines += [cells[method.name] for method in found if method.group == group]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        text += f"\n## {group}\n\n{GROUPS[group]}\n\n{table}\n"
    return text


def written() -> dict[str, tuple[str, ...]]:
    """Return the cells of each method's line in the page that is there."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    lines = (tuple(line.split(" | ")) for line in re.findall(r"^\| (`.*) \|$", text, re.MULTILINE))
    return {cells[0].strip("`"): cells for cells in lines}


def outdated() -> list[str]:
    """Return the methods whose lines are missing, left over, or differ in what is not measured."""
    found, there = methods(), written()
    fresh = rows(
        found, {method.name: there.get(method.name, ("", "", "", *NOT_MEASURED))[MEASURED] for method in found}
    )
    return sorted(name for name in fresh.keys() | there.keys() if fresh.get(name) != there.get(name))


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="store_true", help="keep the prices that the page has")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    options = parser.parse_args()
    if options.check:
        stale = outdated()
        print(f"{PAGE.name}: {'out of date: ' + ', '.join(stale) if stale else 'up to date'}")
        return int(bool(stale))
    found = methods()
    prices = {method.name: NOT_MEASURED for method in found}
    if options.text:
        prices |= {name: cells[MEASURED] for name, cells in written().items()}
    costs = {}
    for name in ["naive", *(name for name, cells in prices.items() if cells == NOT_MEASURED and name != "naive")]:
        try:
            costs[name] = cost(name)
        except UserError:  # it wants another stream
            prices[name] = REFUSED
        PAGE.write_text(page(found, {**prices, **measured(costs)}), encoding="utf-8")  # --text goes on from here
        print(name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
