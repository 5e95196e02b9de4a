"""Scored selection against scores by hand, in double precision, with the same network."""

import numpy as np
import pytest
import torch

from budgetcl.memory.scored import Entropy, LeastConfidence, Margin, MaxLoss


def probabilities(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def loss(p, y):
    return -np.log(p[np.arange(len(p)), y])


def unsure(p, y):
    return 1 - p.max(1)


def nearness(p, y):
    ordered = np.sort(p, 1)
    return ordered[:, -2] - ordered[:, -1]


def entropy(p, y):
    return -(p * np.log(p)).sum(1)


BY_HAND = {MaxLoss: loss, LeastConfidence: unsure, Margin: nearness, Entropy: entropy}


@pytest.mark.parametrize("sampler", BY_HAND)
def test_the_candidates_with_the_highest_score_are_drawn_and_the_others_never(place, answers, drawn, sampler):
    score = BY_HAND[sampler](probabilities(answers[0]), place.memory.label)
    best = set(np.argsort(-score)[:32].tolist())
    assert drawn(sampler(spend=0.9, keep=0.25), place, 8, 60) == best


def test_the_scores_choose_differently(place, answers):
    p, y = probabilities(answers[0]), place.memory.label
    chosen = [frozenset(np.argsort(-score(p, y))[:32].tolist()) for score in BY_HAND.values()]
    assert len(set(chosen)) == 4


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (MaxLoss, [np.log(4), np.log(4 / 3)]),
        (LeastConfidence, [0.25, 0.25]),
        (Margin, [-0.5, -0.5]),
        (Entropy, [0.562335, 0.562335]),
    ],
)
def test_scores_of_probabilities_of_one_and_three_quarters(sampler, expected):
    logits = torch.tensor([[0.25, 0.75], [0.75, 0.25]]).log()
    assert sampler().score(logits, torch.tensor([0, 0])).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("sampler", BY_HAND)
def test_with_a_single_class_all_scores_are_zero(sampler):
    assert sampler().score(torch.tensor([[3.0], [-1.0]]), torch.tensor([0, 0])).tolist() == [0, 0]


@pytest.mark.parametrize("sampler", BY_HAND)
def test_a_candidate_costs_a_forward_pass_and_five_operations_a_class(place, spent, sampler):
    chosen = sampler(candidates=20, spend=1)
    chosen.begin(place)
    chosen.draw(8, 0)
    assert spent("score") == 20 * place.price()
    assert spent("select") == 20 * 5 * 16
    assert spent("train") == 0
