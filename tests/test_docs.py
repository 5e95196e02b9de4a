"""What the documentation says: commands and code run, links lead somewhere, tables are those of the code."""

import importlib.util
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from budgetcl.cli import main
from budgetcl.configuration import compose, conf_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "data" / "README.md"]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [block for language, block in BLOCKS if language == "python"]
COMMANDS = [block for language, block in BLOCKS if not language]
SHELL = [block for block in COMMANDS if "budgetcl " in block]
# Stand in place of what the commands say, so that they take a moment.
SMALL = {
    "glyphs": (
        "stream.pretrain_classes=4", "stream.stream_classes=4", "stream.steps=2", "stream.train=4", "stream.test=1",
        "stream.pretrain_train=4", "reference.batch=8", "budget.updates=2",
    ),
    "uploads": (
        "stream.samples=32", "stream.prefix=100", "stream.classes=20", "stream.burst=6", "stream.shifts=[0,16]",
        "stream.shift=16", "stream.retention=8", "stream.occasions=1", "reference.batch=8", "budget.updates=2",
    ),
    "table": ("stream.steps=2", "budget.passes=0.05"),
    "few": ("budget.updates=2", "reference.batch=8"),
}  # fmt: skip


def commands(block):
    """The commands of a block, without what a shell does not take for a part of them."""
    for line in block.splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def shrunk(words):
    """The arguments of `budgetcl run`, `price` and `tune` on a tiny stream; of several runs one corner."""
    stream = next((word.removeprefix("stream=") for word in words if word.startswith("stream=")), "glyphs")
    small = [*SMALL[stream], *(("trials=1", "seeds=100", "rates=0.1") if words[0] == "tune" else ())]
    replaced = {setting.split("=")[0] for setting in small} | {"hydra/launcher"}
    kept = [word for word in words if word.split("=")[0] not in replaced and word != "-m"]
    return [re.sub(r"range\((\d+),.*\)|(?<==)[\w,]+,(?=\w)", r"\1", word) for word in kept] + small


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that looks as the README says: one's own components, and its scripts; its commands follow each other."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    (folder / "my_methods.py").write_text(PYTHON[0])
    np.save(folder / "labels.npy", np.arange(400) // 8 % 20)
    for path, content in re.findall(r"^\| `(my_conf/\S+)` \| (.*) \|$", README, re.MULTILINE):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        lines = re.findall("`([^`]+)`", content)
        (folder / path).write_text("\n".join(lines))
        assert yaml.safe_load((folder / path).read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder
        sys.modules.pop("my_methods", None)


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.split("#")[0].split("\n")[0].strip())
def test_every_command_of_the_readme_runs(place, block, monkeypatch):
    for words in commands(block):
        arguments = words[1:]
        if words[0] == "python":
            monkeypatch.setattr(sys, "argv", arguments)
            runpy.run_path(arguments[0], run_name="__main__")
            for table in place.glob("digits/*.csv"):  # a few of its pictures will do
                table.write_text("".join(table.read_text().splitlines(keepends=True)[:200]))
        elif words[0] == "budgetcl":
            if arguments[0] in ("run", "price", "tune"):
                arguments = shrunk(arguments)
            if arguments[-1] == "predictions.parquet":
                shutil.copy(next(place.glob("outputs/default/*/predictions.parquet")), place)
            if arguments[0] == "report" and (place / arguments[1] / "report.md").exists():
                continue  # made before, and its plots take time
            if "currency=seconds" in arguments:
                assert compose(arguments[1:])  # how far seconds reach depends on what else the machine does
                continue
            assert main(arguments) == 0, words
        else:
            assert words == ["export", "PYTHONPATH=."]


def test_the_other_commands_of_the_readme_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    asked = [words for block in COMMANDS for words in commands(block)]
    assert {words[1] for words in asked if words[0] == "make"} == {"demo", "test"}
    assert {words[1] for words in asked if words[0] == "make"} <= set(targets)
    assert set(re.findall(r"\.\[(\w+)\]", README)) <= set(extras)


@pytest.mark.parametrize("code", PYTHON[1:], ids=lambda code: code.splitlines()[0])
def test_every_piece_of_code_of_the_readme_runs(place, code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_is_there(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert link.startswith(("http://", "https://")) or (page.parent / link).exists(), link
    for path in re.findall(r"`((?:budgetcl|conf|docs|scripts|tests|data)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_page_of_methods_lists_all_of_them_as_the_code_has_them():
    spec = importlib.util.spec_from_file_location("make_methods_table", ROOT / "scripts" / "make_methods_table.py")
    table = importlib.util.module_from_spec(spec)
    sys.modules["make_methods_table"] = table  # dataclasses look themselves up there
    spec.loader.exec_module(table)
    assert set(table.written()) == {path.stem for path in (conf_folder() / "method").glob("*.yaml")}
    assert not table.outdated(), "run: python scripts/make_methods_table.py --text"


def test_every_choice_of_every_group_is_described():
    for path in conf_folder().rglob("*.yaml"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "@package" not in line]
        assert re.match(r"# \S.{10,}", lines[0]), f"{path}: the first line says what it is"
