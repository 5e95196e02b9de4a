"""The dry run: what it spares itself, and that it leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch.optim import Optimizer

from budgetcl.dry_run import _nothing_compiled, estimate

SMALL = """
import sys
from budgetcl.configuration import compose_each
from budgetcl.dry_run import price
price(compose_each(["stream=glyphs", "stream.pretrain_classes=8", "stream.stream_classes=4", "stream.steps=2",
       "method=naive,kd_mse", "learner.batch=8", "reference.batch=8", "budget.updates=2"]))
print(sorted({"torch._dynamo", "torch._inductor", "torch.distributed.tensor"} & set(sys.modules)))
"""


def test_a_dry_run_does_not_import_the_compiler() -> None:
    """It takes longer than the dry run; if this fails with a newer torch, see _nothing_compiled."""
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, check=True)
    assert "kd_mse" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_update_is_priced_at_the_learners_batch(tiny) -> None:
    """Whatever the reference's; its network's work is in proportion to the images."""
    eight = estimate(tiny("glyphs", "naive", "learner.batch=8").cfg, "naive").prices["update"]
    four = estimate(tiny("glyphs", "naive", "learner.batch=4").cfg, "naive").prices["update"]
    assert 0.5 < four / eight < 0.52  # the optimiser's step costs the same


def test_torch_is_left_as_it_was() -> None:
    code = Optimizer.add_param_group.__code__
    function = (Optimizer.add_param_group.__closure__ or ())[code.co_freevars.index("fn")].cell_contents
    before = dict(vars(function))
    with _nothing_compiled():
        assert hasattr(function, "__dynamo_disable")
        optimiser = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    assert vars(function) == before
    assert len(optimiser.param_groups) == 1
