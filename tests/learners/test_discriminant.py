"""Streaming discriminant analysis: against scikit-learn and the formula written out, at its price."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from budgetcl.errors import UserError
from budgetcl.learners.discriminant import StreamingDiscriminant

CPU = torch.device("cpu")


def gaussians(n, d=6, classes=4, seed=0):
    """The same number of each class, one full covariance for all, in random order."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(5).normal(size=(d, d))
    y = random.permutation(np.repeat(np.arange(classes), n // classes))
    x = np.random.default_rng(7).normal(size=(classes, d))[y] * 2 + random.normal(size=(n, d)) @ mixing
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def taught(classifier, x, y, compute, classes=4, size=7, solve_between=True):
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        classifier.begin(x.shape[1], classes, CPU)
        classifier.learn(x[part], y[part], compute)
        if solve_between:
            classifier.finish(0, compute)
    classifier.finish(0, compute)
    return classifier


def test_almost_without_shrinkage_it_is_the_discriminant_of_scikit_learn(compute):
    (x, y), (queries, _) = gaussians(200), gaussians(80, seed=1)
    scores = taught(StreamingDiscriminant(1e-9), x, y, compute).scores(queries, compute)
    reference = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.25] * 4).fit(x.double().numpy(), y.numpy())
    np.testing.assert_array_equal(scores.argmax(1), reference.predict(queries.double().numpy()))
    np.testing.assert_allclose(scores.softmax(1), reference.predict_proba(queries.double().numpy()), atol=1e-5)


@pytest.mark.parametrize("shrinkage", [1e-4, 0.3, 1.0])
def test_with_shrinkage_it_is_the_papers_formula(compute, shrinkage):
    (x, y), (queries, _) = gaussians(60), gaussians(20, seed=1)
    x, y = x[:37], y[:37]  # classes of unequal size
    scores = taught(StreamingDiscriminant(shrinkage), x, y, compute).scores(queries, compute)
    rows, labels = x.double().numpy(), y.numpy()
    means = np.stack([rows[labels == c].mean(0) for c in range(4)])
    within = sum(np.outer(row - means[c], row - means[c]) for row, c in zip(rows, labels)) / 37
    inverse = np.linalg.inv((1 - shrinkage) * within + shrinkage * np.eye(6))
    by_hand = queries.double().numpy() @ inverse @ means.T - np.diag(means @ inverse @ means.T) / 2
    np.testing.assert_allclose(scores, by_hand, rtol=1e-6, atol=1e-6)


def test_the_order_and_the_batches_of_the_samples_hardly_matter(compute):
    (x, y), (queries, _) = gaussians(100), gaussians(32, seed=1)
    one = taught(StreamingDiscriminant(), x, y, compute)
    other = taught(StreamingDiscriminant(), x.flip(0), y.flip(0), compute, size=33, solve_between=False)
    torch.testing.assert_close(one.scores(queries, compute), other.scores(queries, compute), rtol=1e-7, atol=1e-7)


def test_it_costs_outer_products_and_one_solution_a_step(compute, charged):
    x, y = gaussians(100)
    classifier = taught(StreamingDiscriminant(), x, y, compute, size=50, solve_between=False)
    rows = 100 * (6 + 2 * 36)
    solution = 216 // 3 + 4 * 36 * 4 + 2 * 6 * 4
    assert charged("train") == rows + solution
    assert classifier.price(100) == rows
    assert classifier.kept(10**9) == solution
    classifier.scores(x[:9], compute)
    assert charged("predict") == 9 * 2 * 6 * 4
    assert classifier.nbytes() == 8 * (4 * 6 + 4 + 6 * 6 + 4 * 6 + 4)


def test_tiny_inputs(compute):
    x, _ = gaussians(4)
    one = taught(StreamingDiscriminant(), x[:1], torch.tensor([2]), compute)
    scores = one.scores(x, compute)
    assert scores.argmax(1).tolist() == [2, 2, 2, 2]
    assert torch.isinf(scores[:, [0, 1, 3]]).all()
    one_each = taught(StreamingDiscriminant(), x, torch.arange(4), compute, size=1)
    assert one_each.scores(x, compute).argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shrinkage", [0, -0.1, 1.5, "some", True])
def test_a_shrinkage_that_is_none_is_refused(shrinkage):
    with pytest.raises(UserError, match=r"classifier.shrinkage=.* given; a number from 1e-09 to 1"):
        StreamingDiscriminant(shrinkage)
