"""Running the scripts that prepare published sets, within the tests' process."""

import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from budgetcl.data.prepared import script

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def prepare_module(request):
    """The script that the test's file is named after, as a module."""
    name = request.path.stem.removeprefix("test_")
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def prepare(prepare_module):
    """(*arguments) -> what the script returned and printed."""

    def run(*arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = script(prepare_module.main, prepare_module.parser(), [str(a) for a in arguments])
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

    return run


@pytest.fixture(scope="session")
def picture():
    """(path, seed) -> writes a small picture of noise there."""

    def write(path, seed):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=80)

    return write
