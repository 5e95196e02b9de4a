"""Hollow tensors against the real ones: same shapes, same layout, same shared memory, and no values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budgetcl.budget.hollow import Hollow, Hollowed, storage_of

WORKS: dict[str, Callable[[Tensor], Tensor]] = {
    "broadcast": lambda x: x[:, None] * x.sum(1, keepdim=True)[None],
    "comparison": lambda x: (x > 0) & (x < 2),
    "mixed with a real tensor": lambda x: torch.arange(6.0) + x.long(),
    "convolution": lambda x: F.conv2d(x.view(1, 1, 4, 6), torch.ones(2, 1, 3, 3), padding=1),
    "pooled channels last": lambda x: F.adaptive_avg_pool2d(
        x.view(1, 4, 3, 2).contiguous(memory_format=torch.channels_last), 1
    ),
    "views": lambda x: x.t()[1:].unsqueeze(0).expand(3, -1, -1),
    "in place": lambda x: x.add_(1).clamp_(0).view(-1),
    "in place, another shape": lambda x: x.clone().unsqueeze_(0).transpose_(0, 2),
    "into a result": lambda x: torch.add(x, 1, out=torch.empty_like(x)),
    "several results": lambda x: x.topk(2).indices + x.sort(1).values[:, :2].long(),
    "a list": lambda x: torch.cat([*x.chunk(2, 1), x], 0) if x.shape[1] == 3 else torch.stack(x.unbind(0)),
    "made alike": lambda x: torch.zeros_like(x, dtype=torch.int16) + x.new_ones(4, 1, dtype=torch.int16),
}


@pytest.mark.parametrize("name", WORKS)
def test_a_hollow_result_looks_like_the_real_one(name: str) -> None:
    x = torch.rand(4, 6)
    for _ in range(2):  # the second time from what was kept
        real = WORKS[name](x.clone())
        with Hollowed():
            hollow = WORKS[name](Hollow.of(x))
        assert isinstance(hollow, Hollow)
        looks: Any = [(t.shape, t.dtype, t.device, t.stride(), t.storage_offset()) for t in (real, hollow)]
        assert looks[0] == looks[1]
        assert storage_of(hollow).nbytes() == real.untyped_storage().nbytes()


def test_equal_numbers_of_other_types_make_other_results() -> None:
    x = torch.ones(3, dtype=torch.uint8)
    with Hollowed():
        hollow = Hollow.of(x)
        assert [(hollow.flip(0) * one).dtype for one in (1, 1.0, True)] == [(x * one).dtype for one in (1, 1.0, True)]


def test_hollow_tensors_work_outside_of_the_mode_too() -> None:
    x = Hollow.of(torch.rand(4, 6))
    assert (x @ x.t()).shape == (4, 4)


def test_views_share_memory_and_what_works_in_place_returns_what_it_was_given() -> None:
    with Hollowed():
        x = Hollow.of(torch.rand(4, 6))
        assert storage_of(x.view(24)[3:])._cdata == storage_of(x)._cdata != storage_of(x + 1)._cdata
        assert x.mul_(2) is x
        assert torch.add(x, 1, out=x) is x


def test_a_parameter_stays_a_parameter_and_gets_a_hollow_gradient() -> None:
    with Hollowed():
        weight, frozen = Hollow.of(nn.Parameter(torch.rand(3, 6))), Hollow.of(nn.Parameter(torch.rand(3), False))
        F.linear(Hollow.of(torch.rand(4, 6)), weight, frozen).sum().backward()
    assert isinstance(weight, nn.Parameter)
    assert isinstance(weight.grad, Hollow)
    assert weight.grad.shape == (3, 6)
    assert not frozen.requires_grad
    assert frozen.grad is None


@pytest.mark.parametrize(
    "work", [lambda x: bool(x.sum() > 0), lambda x: x[x > 0], lambda x: x.unique(), lambda x: x.tolist(), torch.nonzero]
)
def test_what_needs_values_is_refused(work: Callable[[Tensor], Any]) -> None:
    with Hollowed(), pytest.raises((RuntimeError, NotImplementedError)):
        work(Hollow.of(torch.rand(4)))
