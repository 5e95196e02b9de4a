"""Recursive ridge regression: against the joint solution, and its price against an implementation that counts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from budgetcl.budget.formulas import recursive_least_squares
from budgetcl.errors import UserError
from budgetcl.learners.analytic import RecursiveRidge

CPU = torch.device("cpu")


class Unlimited:
    """A compute that charges nothing, for tests of numbers alone."""

    def work(self, category, flops, function):
        return function()


def samples(n, d=10, classes=5, seed=0):
    random = np.random.default_rng(seed)
    y = np.sort(random.integers(classes, size=n))  # classes come one after another, and the last ones late
    y[:: max(1, n // 7)] = 0  # one of them comes again and again
    return torch.from_numpy(random.normal(size=(n, d)).astype(np.float32)), torch.from_numpy(y)


def taught(classifier, x, y, compute, sizes):
    start = step = 0
    while start < len(x):
        part = slice(start, start + sizes[step % len(sizes)])
        classifier.begin(x.shape[1], int(y[: part.stop].max()) + 1, CPU)  # a head that grows
        classifier.learn(x[part], y[part], compute)
        start, step = part.stop, step + 1
    return classifier


@pytest.mark.parametrize("ridge", [0.01, 1.0, 100.0])
def test_it_is_the_joint_ridge_regression_of_scikit_learn(compute, ridge):
    x, y = samples(120)
    scores = taught(RecursiveRidge(ridge), x, y, compute, (1, 16, 5)).scores(x, compute)
    targets = np.eye(5)[y.numpy()]
    joint = Ridge(alpha=ridge, fit_intercept=False).fit(x.double().numpy(), targets).predict(x.double().numpy())
    np.testing.assert_allclose(scores, joint, rtol=0, atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 8), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_it_equals_the_closed_form_however_the_stream_is_cut(n, d, sizes, seed):
    x, y = samples(n, d, 3, seed)
    classifier = taught(RecursiveRidge(0.5), x, y, Unlimited(), sizes)
    rows, targets = x.double(), torch.nn.functional.one_hot(y, int(y.max()) + 1).double()
    gram = rows.T @ rows + 0.5 * torch.eye(d, dtype=torch.float64)
    joint = torch.linalg.solve(gram, rows.T @ targets)
    state = classifier.state_dict()
    torch.testing.assert_close(state["weight"].T, joint, rtol=0, atol=1e-8)
    torch.testing.assert_close(state["inverse"], torch.linalg.inv(gram), rtol=0, atol=1e-8)
    assert state["counts"].tolist() == torch.bincount(y).tolist()


def test_its_price_is_that_of_an_implementation_that_counts():
    n, d, c = 12, 20, 5
    count = 0

    def product(a, b):
        nonlocal count
        count += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return a @ b

    def forward_substitution(factor, b):
        nonlocal count
        solved = np.zeros_like(b)
        for i in range(len(b)):
            for j in range(i):
                solved[i] -= factor[i, j] * solved[j]
                count += 2 * b.shape[1]
            solved[i] = (b[i] + solved[i]) / factor[i, i]
            count += b.shape[1]
        return solved

    random = np.random.default_rng(0)
    x, inverse, weight, y = (random.normal(size=shape) for shape in ((n, d), (d, d), (d, c), (n, c)))
    inverse = inverse @ inverse.T
    moved = product(x, inverse)
    factor = np.linalg.cholesky(product(moved, x.T) + np.eye(n))
    count += n**3 // 3
    error = forward_substitution(factor, y - product(x, weight))
    moved = forward_substitution(factor, moved)
    inverse -= product(moved.T, moved)
    weight += product(moved.T, error)
    assert recursive_least_squares(n, d, c) == count


def test_it_charges_each_batch_and_each_answer(compute, charged):
    x, y = samples(30)
    classifier = taught(RecursiveRidge(), x, y, compute, (30,))
    assert charged("train") == 4 * 30 * 100 + 3 * 900 * 10 + 9000 + 4 * 30 * 10 * 5 + 900 * 5 == classifier.price(30)
    assert classifier.kept(1000) == 0
    classifier.scores(x[:7], compute)
    assert charged("predict") == 7 * 2 * 10 * 5
    assert classifier.nbytes() == 8 * (10 * 10 + 5 * 10 + 5)


def test_tiny_inputs(compute):
    x, _ = samples(1)
    classifier = RecursiveRidge()
    classifier.begin(10, 3, CPU)
    classifier.learn(x, torch.tensor([1]), compute)
    scores = classifier.scores(x, compute)
    assert scores.argmax(1).tolist() == [1]
    assert torch.isinf(scores[0, [0, 2]]).all()


@pytest.mark.parametrize("ridge", [0, -1, float("inf"), True, "strong"])
def test_a_ridge_that_is_none_is_refused(ridge):
    with pytest.raises(UserError, match=r"classifier.ridge=.* given; a number above 0"):
        RecursiveRidge(ridge)
