"""The dry run: what it spares itself, and that it leaves nothing behind."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from budgetcl.dry_run import _nothing_compiled, estimate


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
