"""Where a step starts from, at which rates, and what it learns from: stored features and logits, small memories,
pictures decoded ahead and pictures that cannot be read."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from budgetcl.errors import UserError
from budgetcl.models.backbones import SmallResNet
from budgetcl.streams.batch import Source
from budgetcl.streams.prefetch import Pending, Shown
from budgetcl.streams.revealed import Revealed

WIDTH = 64  # features
PLAIN = ("optimiser.momentum=0", "optimiser.nesterov=false", "optimiser.weight_decay=0", "schedule=constant")


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def fitted(parts, steps, begun=lambda place: None):
    """Send a learner through the first steps; ``begun`` sees each step after it was taken in, before its updates."""
    learner, revealed = parts.learner, Revealed(parts.source)
    begin = learner._sampler.begin

    def watched(place):
        begun(place)
        begin(place)

    learner._sampler.begin = watched
    for step in list(parts.source.stream)[:steps]:
        revealed.reveal(step)
        with parts.compute.step(step):
            learner.fit(step, revealed, parts.compute)
    return learner, revealed


# --- where a step starts from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", ["pretrained", "scratch", "null"])
def test_a_step_starts_from_the_weights_it_says(tiny, restart):
    parts = tiny("glyphs", "naive", f"learner.restart={restart}", "budget.updates=2")
    came = snapshot(parts.learner.network.backbone)
    rows = parts.learner.network.backbone.head_weight[:10]
    fresh = snapshot(SmallResNet(seed=0))
    starts, ends = [], []

    def begun(place):
        starts.append(snapshot(place.network))
        assert place.network.head.classes == place.revealed.classes
        assert not parts.learner.optimiser.state or restart == "null"

    parts.learner.end = lambda place, end=parts.learner.end: (ends.append(snapshot(place.network)), end(place))
    fitted(parts, 3, begun)
    for number, start in enumerate(starts):
        backbone = {name.removeprefix("backbone."): value for name, value in start.items() if "backbone" in name}
        wanted = {"pretrained": came, "scratch": fresh, "null": came}[restart]
        if restart == "null" and number:
            assert all(torch.equal(start[name][: len(value)] if value.ndim else start[name], value)
                       for name, value in ends[number - 1].items())  # fmt: skip
            continue
        assert all(torch.equal(backbone[name], value) for name, value in wanted.items()), number
        head = start["head.weight"]
        assert torch.equal(head[:10], rows) == (restart != "scratch")
        new = head if restart == "scratch" else head[10:]
        assert 0 < new.abs().max() < 0.001
    assert not torch.equal(ends[0]["backbone.stem.weight"], starts[0]["backbone.stem.weight"])
    assert len(starts) == 3


def test_a_restarted_step_forgets_the_momentum_and_begins_at_the_peak(tiny):
    """With one update a step, each moves by (1 + momentum) x rate x gradient of the same pretrained weights."""
    settings = ("optimiser.weight_decay=0", "schedule=constant", "budget.updates=1")
    parts = tiny("glyphs", "naive", "learner.restart=pretrained", *settings)
    given = []
    update = parts.compute.update

    def updated(objective, network, batch, optimiser, **kwargs):
        before = copy.deepcopy(network).train()
        outputs = update(objective, network, batch, optimiser, **kwargs)
        cross_entropy(before(batch.x).logits, batch.y).backward()
        for (name, p), after in zip(before.named_parameters(), network.parameters()):
            torch.testing.assert_close(after, p - 0.1 * 1.9 * p.grad, rtol=1e-4, atol=1e-6, msg=name)
        given.append(len(batch))
        return outputs

    parts.compute.update = updated
    fitted(parts, 3)
    assert given == [8, 8, 8]


@pytest.mark.parametrize(("setting", "message"), [
    ("learner.restart=fresh", "learner.restart='fresh' given"),
    ("learner.backbone_rate=-1", r"learner\.backbone_rate=-1 given"),
])  # fmt: skip
def test_settings_that_are_none_are_refused(tiny, setting, message):
    with pytest.raises(UserError, match=message):
        tiny("glyphs", "naive", setting)


# --- two rates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.25, 0.0])
def test_the_backbone_has_a_rate_of_its_own(tiny, rate):
    """Two updates of plain descent, against gradients of copies."""
    parts = tiny("glyphs", "naive", *PLAIN, f"learner.backbone_rate={rate}", "budget.updates=2")
    update, seen = parts.compute.update, []

    def updated(objective, network, batch, optimiser, **kwargs):
        before = copy.deepcopy(network).train()
        outputs = update(objective, network, batch, optimiser, **kwargs)
        cross_entropy(before(batch.x).logits, batch.y).backward()
        for (name, p), after in zip(before.named_parameters(), network.parameters()):
            mine = 0.1 * (rate if name.startswith("backbone.") else 1.0)
            torch.testing.assert_close(after, p - mine * p.grad, rtol=1e-4, atol=1e-6, msg=name)
        backbone, head = optimiser.param_groups
        assert {id(p) for p in backbone["params"]} == {id(p) for p in network.backbone.parameters()}
        assert {id(p) for p in head["params"]} == {id(p) for p in network.head.parameters()}
        seen.append((backbone["lr"], head["lr"]))
        return outputs

    parts.compute.update = updated
    fitted(parts, 2)
    assert seen == [(0.1 * rate, 0.1)] * 4


# --- stored features --------------------------------------------------------------------------------------------------


def test_training_on_stored_features_is_training_the_head_on_images(tiny):
    """In updates, not FLOPs, both make the same ones: the same weights, since a frozen backbone answers the same."""
    settings = (*PLAIN, "part=head_only", "currency=iterations", "budget.updates=5")
    heads = []
    for cached in ("false", "true"):
        learner, _ = fitted(tiny("glyphs", "naive", *settings, f"part.cached={cached}"), 2)
        heads.append(learner.network.head)
    torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heads[0].bias, heads[1].bias, rtol=1e-4, atol=1e-5)


def test_a_samples_features_are_computed_once_and_charged_once(tiny):
    parts = tiny("glyphs", "naive", "part=head_only", "part.cached=true", "budget.updates=5")
    learner, revealed = fitted(parts, 1)
    memory, network = learner.memory, learner.network
    values, found = memory.stored("features", np.arange(len(memory)), WIDTH)
    rows = np.flatnonzero(found)
    assert set(np.flatnonzero(memory.last_used >= 0).tolist()) <= set(rows.tolist())
    with torch.no_grad():
        features = network.eval()(revealed.images(memory.index[rows])).features
    torch.testing.assert_close(values[torch.from_numpy(rows)], features, rtol=1e-4, atol=1e-5)
    # The bill: one forward of each sample; of each update the head's forward and weight gradient, and SGD's 6 a weight.
    classes, one = 13, parts.compute.price(network, revealed.images(rows[:1]))
    updates = parts.compute.updates
    update = 2 * 8 * 2 * WIDTH * classes + 6 * (WIDTH + 1) * classes
    assert updates > 10
    assert parts.compute.ledger.spent == len(rows) * one + updates * update
    assert parts.compute.ledger.remaining < 8 * one + update


def test_stored_features_and_augmented_images_do_not_go_together(tiny):
    parts = tiny("glyphs", "naive", "part=head_only", "part.cached=true")
    parts.source.pixels.augments = True
    try:
        with pytest.raises(UserError, match=r"part\.cached=true given, but the stream's images are augmented"):
            fitted(parts, 1)
    finally:
        parts.source.pixels.augments = False


# --- stored logits ----------------------------------------------------------------------------------------------------


def spied(parts):
    """Let each update note its rows' indices, its batch and what it answered."""
    update, seen = parts.compute.update, []

    def updated(objective, network, batch, *args, **kwargs):
        outputs = update(objective, network, batch, *args, **kwargs)
        seen.append(SimpleNamespace(batch=batch, logits=outputs.logits.detach().clone()))
        return outputs

    parts.compute.update = updated
    return seen


def test_logits_are_those_of_a_samples_first_update_for_ever(tiny):
    parts = tiny("glyphs", "der", "budget.updates=6")
    seen = spied(parts)
    learner, _ = fitted(parts, 3)
    memory, first = learner.memory, {}
    again = 0
    for made in seen:
        for i, sample in enumerate(made.batch.index.tolist()):
            stored, classes = made.batch.extra["logits"][i], int(made.batch.extra["logits_classes"][i])
            if sample in first:  # it was replayed with what was stored
                again += 1
                assert classes == len(first[sample])
                assert torch.equal(stored[:classes], first[sample])
                assert not stored[classes:].any()
            else:
                assert classes == 0
                assert not stored.any()
                first[sample] = made.logits[i].half().float()
    assert again > 20
    assert len({len(value) for value in first.values()}) == 3  # the head grew in between
    rows = np.array([np.flatnonzero(memory.index == sample)[0] for sample in first])
    values, widths = memory.stored("logits", rows, learner.network.head.classes)
    for value, width, expected in zip(values, widths, first.values()):
        assert torch.equal(value[:width], expected)
    others = np.setdiff1d(np.arange(len(memory)), rows)
    assert not memory.stored("logits", others, learner.network.head.classes)[1].any()


@pytest.mark.parametrize("method", ["der", "head_only_cached"])
def test_what_is_stored_goes_with_a_memory_of_limited_capacity(tiny, method):
    """New samples must win their place before anything of them is stored."""
    parts = tiny("glyphs", method, "memory=greedy", "memory.capacity=30", "currency=iterations")
    learner, _ = fitted(parts, 3)
    assert len(learner.memory) == 30


# --- small memories ---------------------------------------------------------------------------------------------------


def test_a_short_batch_is_what_the_memory_holds_and_costs_less(tiny):
    settings = ("learner.batch=40", "reference.batch=40", "budget.updates=3", "short_batches=true")
    parts = tiny("uploads", "naive", *settings)
    seen = spied(parts)
    fitted(parts, 4)
    sizes = [len(made.batch) for made in seen]
    assert sizes[:3] == [16] * 3  # what the first step revealed, and there was nothing before
    assert sizes[-3:] == [40] * 3
    assert set(sizes) == {16, 32, 40}
    assert sizes.count(16) > 3  # the smaller ones are cheaper, so the same allowance buys more of them
    assert sorted(seen[0].batch.index.tolist()) == sorted(seen[1].batch.index.tolist()) == list(range(16))


def test_an_early_memory_trains_on_what_won_a_place_and_a_late_one_on_all_that_is_new(tiny):
    sizes, new = {}, {}
    for early in ("true", "false"):
        settings = ("memory=greedy", "memory.capacity=30", f"memory.early={early}", "budget.updates=2")
        place_sizes, parts = [], tiny("glyphs", "naive", *settings)
        seen = spied(parts)
        learner, _ = fitted(
            parts, 3, lambda place, sizes=place_sizes: sizes.append((len(place.memory), place.memory.new))
        )
        sizes[early] = place_sizes
        new[early] = len(seen)
        assert len(learner.memory) == 30
    assert [size for size, _ in sizes["true"]] == [30] * 3
    assert [size for size, _ in sizes["false"]] == [54] * 3
    assert [new for _, new in sizes["false"]] == [24] * 3
    # Thirty places for 13, 16 and 19 classes: of three new ones, each has at least one and at most three.
    assert all(3 <= new <= 9 for _, new in sizes["true"])
    assert new["true"] == new["false"] == 6


# --- decoding ahead ---------------------------------------------------------------------------------------------------


class Background:
    """Pixels that say what was begun, waited for and cancelled, and which pictures cannot be read."""

    def __init__(self, pixels, bad=()):
        self._pixels, self.shape, self.fingerprint, self.bad = pixels, pixels.shape, pixels.fingerprint, bad
        self.begun, self.cancelled, self.log = [], [], []

    def __call__(self, indices, augment=None):
        return self._pixels(indices, augment)

    def begin(self, indices, augment=None):
        number = len(self.begun)
        self.begun.append(indices)
        self.log.append(("begin", number))
        damaged = {place: "spoilt" for place, index in enumerate(indices.tolist()) if index in self.bad}

        def finish():
            self.log.append(("result", number))
            x = self._pixels(indices, augment)
            x[list(damaged)] = 0
            return Shown(x, damaged)

        return Pending(finish, lambda: self.cancelled.append(number))


def behind(parts, tiny, method, *overrides, bad=()):
    pixels = Background(parts.source.pixels, bad)
    return tiny("glyphs", method, *overrides, source=Source(parts.source.stream, pixels)), pixels


@pytest.mark.parametrize("method", ["naive", "er", "der"])
def test_the_next_batch_is_begun_before_this_one_is_used_and_no_bit_changes(tiny, method):
    plain = tiny("glyphs", method)
    parts, pixels = behind(plain, tiny, method)
    one, other = fitted(plain, 2)[0], fitted(parts, 2)[0]
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name])
    assert np.array_equal(one.memory.last_used, other.memory.last_used)
    # Each step: four updates and the one refused; what was begun for the sixth is cancelled.
    results = [number for kind, number in pixels.log if kind == "result"]
    assert results == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert pixels.cancelled == [5, 11]
    for number in (0, 1, 2, 3, 4):
        assert pixels.log.index(("begin", number + 1)) < pixels.log.index(("result", number))
        assert ("begin", number + 2) not in pixels.log[: pixels.log.index(("result", number))]
    assert not parts.learner._ahead


def test_a_sampler_that_looks_at_the_network_is_not_asked_ahead(tiny):
    parts, pixels = behind(tiny("glyphs", "naive"), tiny, "mir")
    fitted(parts, 1)
    batches = [number for number, indices in enumerate(pixels.begun) if len(indices) == 8]
    assert batches
    assert not pixels.cancelled
    kinds = [entry for entry in pixels.log if entry[1] in batches]
    assert kinds == [(kind, number) for number in batches for kind in ("begin", "result")]


# --- pictures that cannot be read -------------------------------------------------------------------------------------


def test_a_stand_in_is_counted_and_stored_as_itself(tiny):
    """The next readable sample of the batch: its picture, label, stored logits and use, and none of the damaged one."""
    bad = tuple(range(0, 150, 3))
    parts, pixels = behind(tiny("glyphs", "der"), tiny, "der", "budget.updates=6", bad=bad)
    seen = spied(parts)
    learner, revealed = fitted(parts, 2)
    memory, first = learner.memory, {}
    results = [number for kind, number in pixels.log if kind == "result"]
    numbers = [number for number in results if number + 1 not in pixels.cancelled]  # the last of a step was refused
    assert len(numbers) == len(seen)
    for made, drawn in zip(seen, (pixels.begun[number] for number in numbers)):
        index = made.batch.index
        assert not np.isin(index, bad).any()
        expected = drawn.copy()
        for place in np.flatnonzero(np.isin(drawn, bad)):  # the next one, round the end
            expected[place] = next(i for i in [*drawn[place:], *drawn[:place]] if i not in bad)
        assert index.tolist() == expected.tolist()
        assert torch.equal(made.batch.x, pixels(index))
        assert made.batch.y.tolist() == revealed.labels(index).tolist()
        for i, sample in enumerate(index.tolist()):
            stored = made.batch.extra["logits"][i, : int(made.batch.extra["logits_classes"][i])]
            assert torch.equal(stored, first.get(sample, stored[:0]))
        for i, sample in enumerate(index.tolist()):
            first.setdefault(sample, made.logits[i].half().float())
    used = memory.index[memory.last_used >= 0]
    assert set(used.tolist()) == set(first)
    widths = memory.stored("logits", np.arange(len(memory)), learner.network.head.classes)[1]
    assert set(memory.index[widths > 0].tolist()) == set(first)
    assert revealed.replaced > 10
