import pytest

from budgetcl.objectives.cross_entropy import CrossEntropy


@pytest.mark.parametrize("n", [1, 2, 3])
def test_it_is_the_mean_negative_log_likelihood(toy, n):
    loss, outputs = CrossEntropy()(toy, toy.batch(n))
    assert loss.item() == pytest.approx(toy.cross_entropies(n).mean())
    assert outputs.logits.shape == (n, 3)
