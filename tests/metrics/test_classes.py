"""The classes against the functions: any order, any number of processes, and torchmetrics' conventions."""

import pickle

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from torchmetrics import Metric, MetricCollection

from budgetcl import metrics
from budgetcl.errors import UserError
from budgetcl.metrics import functional

N, CHUNK, SHIFTS = 200, 8, (0, 16)


def ahead_rows():
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 5, N), 4)[:N]
    index = np.concatenate([np.arange(shift, N) for shift in SHIFTS])
    shift = np.concatenate([np.full(N - shift, shift) for shift in SHIFTS])
    rows = (rng.integers(0, 5, len(index)), labels[index], index, (index - shift) // CHUNK * CHUNK)
    return [torch.from_numpy(column) for column in rows]


def step_rows():
    rng = np.random.default_rng(1)
    return [torch.from_numpy(rng.integers(0, high, 300)) for high in (2, 2, 3, 3)]  # pred, target, step, task


PRED, TARGET, INDEX, SEEN = ahead_rows()
SPENT = 100.0 * (1 + INDEX // 50)
KEPT = torch.full_like(INDEX, N)
STEPS = step_rows()

# name -> (make, the columns of its update, the value of the function)
CASES = {
    "online": (
        lambda: metrics.OnlineAccuracy(),
        (PRED, TARGET, INDEX, SEEN),
        lambda: functional.near_future_accuracy(PRED, TARGET, INDEX, SEEN, 0),
    ),
    "near_future": (
        lambda: metrics.NearFutureAccuracy(16, warmup=30),
        (PRED, TARGET, INDEX, SEEN),
        lambda: functional.near_future_accuracy(PRED, TARGET, INDEX, SEEN, 16, warmup=30),
    ),
    "curve": (
        lambda: metrics.NearFutureCurve(SHIFTS),
        (PRED, TARGET, INDEX, SEEN),
        lambda: list(functional.near_future_curve(PRED, TARGET, INDEX, SEEN, SHIFTS).values()),
    ),
    "blind": (
        lambda: metrics.BlindAccuracy(5, 2, 4),
        (TARGET[:N], INDEX[:N]),
        lambda: metrics.blind_accuracy(TARGET[:N], [5], [2], 4)[0, 0],
    ),
    "retention": (
        lambda: metrics.InformationRetention(),
        (PRED, TARGET, INDEX, KEPT),
        lambda: functional.information_retention(PRED, TARGET, INDEX, KEPT).accuracy,
    ),
    "by_age": (
        lambda: metrics.RetentionByAge(4),
        (PRED, TARGET, INDEX, KEPT),
        lambda: functional.information_retention(PRED, TARGET, INDEX, KEPT, 4).by_age,
    ),
    "average": (
        lambda: metrics.AverageAccuracy(),
        STEPS[:3],
        lambda: functional.average_accuracy(functional.accuracy_by_step(*STEPS[:3])[1]),
    ),
    "final": (
        lambda: metrics.FinalAccuracy(),
        STEPS[:3],
        lambda: functional.final_accuracy(functional.accuracy_by_step(*STEPS[:3])[1]),
    ),
    "forgetting": (
        lambda: metrics.Forgetting(),
        STEPS,
        lambda: functional.forgetting(functional.accuracy_matrix(*STEPS)),
    ),
    "backward": (
        lambda: metrics.BackwardTransfer(),
        STEPS,
        lambda: functional.backward_transfer(functional.accuracy_matrix(*STEPS)),
    ),
    "forward": (
        lambda: metrics.ForwardTransfer([0.5] * 3),
        STEPS,
        lambda: functional.forward_transfer(functional.accuracy_matrix(*STEPS), [0.5] * 3),
    ),
    "anytime": (
        lambda: metrics.AnytimeAccuracy(),
        (PRED, TARGET, SPENT),
        lambda: functional.anytime_accuracy(
            [float((PRED == TARGET)[at == SPENT].double().mean()) for at in SPENT.unique()], SPENT.unique()
        ),
    ),
    "at_budget": (
        lambda: metrics.AccuracyAtBudget(250),
        (PRED, TARGET, SPENT),
        lambda: float((PRED == TARGET)[SPENT == 200].double().mean()),
    ),
    "flips": (
        lambda: metrics.NegativeFlipRate(),
        (PRED, PRED.flip(0), TARGET),
        lambda: functional.negative_flip_rate(PRED, PRED.flip(0), TARGET),
    ),
}
every_metric = pytest.mark.parametrize("name", CASES)


def parts(columns, pieces, seed=0):
    """Cut rows at random into parts, in no order."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(columns[0])))
    return list(zip(*(column[order].tensor_split(pieces) for column in columns)))


@every_metric
def test_shuffled_updates_equal_the_function(name):
    make, columns, expected = CASES[name]
    metric = make()
    for part in parts(columns, 7):
        metric.update(*part)
    assert metric.compute().tolist() == pytest.approx(expected())
    assert isinstance(metric, Metric)
    assert metric.higher_is_better == (name not in ("forgetting", "flips"))


@every_metric
def test_reset_clone_pickle_and_state_dict_follow_the_conventions(name):
    make, columns, expected = CASES[name]
    metric = make()
    assert metric.state_dict() == {}
    first, second = parts(columns, 2)
    metric.update(*first)
    twin, thawed = metric.clone(), pickle.loads(pickle.dumps(metric))
    for each in (metric, twin, thawed):
        each.update(*second)
        assert each.compute().tolist() == pytest.approx(expected())
    metric.reset()
    metric.update(*columns)
    assert metric.compute().tolist() == pytest.approx(expected())
    metric.persistent(True)
    restored = make()
    restored.persistent(True)
    restored.load_state_dict(metric.state_dict())
    restored._update_count = 1
    assert restored.compute().tolist() == pytest.approx(expected())


@every_metric
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_forward_judges_the_batch_and_keeps_it(name):
    make, columns, expected = CASES[name]
    metric = make()
    values = [metric(*part) for part in parts(columns, 5)]
    assert all(value.shape == metric.compute().shape for value in values)
    assert metric.compute().tolist() == pytest.approx(expected())
    assert torch.isnan(make().compute()).all()


@every_metric
def test_a_metric_plots_its_value(name):
    make, columns, _ = CASES[name]
    metric = make()
    metric.update(*columns)
    figure, _axes = metric.plot()
    figure.clear()


def test_metrics_of_one_collection_share_rows_and_stay_right():
    collection = MetricCollection(
        {
            "online": metrics.OnlineAccuracy(),
            "near": metrics.NearFutureAccuracy(16),
            "top2": metrics.OnlineAccuracy(top_k=2),
        }
    )
    scores = torch.nn.functional.one_hot(PRED, 5) + 0.5 * torch.nn.functional.one_hot((PRED + 1) % 5, 5)
    for part in parts((scores, TARGET, INDEX, SEEN), 6):
        collection.update(*part)
    values = collection.compute()
    assert values["online"] == functional.near_future_accuracy(PRED, TARGET, INDEX, SEEN, 0)
    assert values["near"] == functional.near_future_accuracy(PRED, TARGET, INDEX, SEEN, 16)
    assert values["top2"] == functional.near_future_accuracy(scores, TARGET, INDEX, SEEN, 0, top_k=2)
    assert values["top2"] > values["online"]
    assert len(collection.compute_groups) == 2  # the two on the same rows keep them once


def test_the_value_on_a_batch_is_over_its_own_rows():
    metric = metrics.OnlineAccuracy(warmup=10)
    assert torch.isnan(metric([1], [1], index=[3], seen=[3]))
    assert metric([1, 2], [1, 1], index=[20, 21], seen=[20, 20]) == 0.5
    near = metrics.NearFutureAccuracy(4, warmup=0)
    assert torch.isnan(near([1], [1], index=[9], seen=[8]))


def test_what_a_batch_cannot_show_is_refused_at_compute():
    metric = metrics.OnlineAccuracy(warmup=0)
    for _ in range(2):
        metric.update([1], [1], index=[0], seen=[0])
    with pytest.raises(UserError, match="both predict index 0"):
        metric.compute()
    near = metrics.NearFutureAccuracy(4, warmup=0)
    near.update([1, 1], [1, 1], index=[4, 5], seen=[0, 4])
    with pytest.raises(UserError, match="no row predicts index 5"):
        near.compute()
    blind = metrics.BlindAccuracy(1)
    blind.update(torch.tensor([1, 1]), torch.tensor([0, 2]))
    with pytest.raises(UserError, match="position 1 of the stream is missing"):
        blind.compute()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.NearFutureAccuracy(-1), "shift=-1"),
        (lambda: metrics.OnlineAccuracy(warmup=1.5), "warmup"),
        (lambda: metrics.OnlineAccuracy(top_k=0), "top_k=0"),
        (lambda: metrics.NearFutureCurve([]), "no shift"),
        (lambda: metrics.BlindAccuracy(0), "window=0"),
        (lambda: metrics.Forgetting("worst"), "worst"),
        (lambda: metrics.OnlineAccuracy().update([1], [1], [0], [1]), "leak"),
    ],
)
def test_bad_arguments_are_refused_when_given(make, message):
    with pytest.raises(UserError, match=message):
        make()


def _one_process(rank, world, file, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    values = {}
    for name, (make, columns, _) in CASES.items():
        metric = make()
        mine = parts(columns, 5)[rank::world]  # unequal shares, in no order
        for part in mine:
            metric.update(*part)
        values[name] = metric.compute().tolist()
    lopsided = metrics.OnlineAccuracy()
    if rank == 0:
        lopsided.update(PRED, TARGET, INDEX, SEEN)
    values["one process has no row"] = lopsided.compute().tolist()
    queue.put((rank, values))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_processes_equal_one(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_one_process, args=(rank, 2, tmp_path / "meet", queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    values = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=30)
        assert worker.exitcode == 0
    expected = {name: expected() for name, (_, _, expected) in CASES.items()}
    expected["one process has no row"] = CASES["online"][2]()
    for name, value in expected.items():
        assert values[0][name] == pytest.approx(value), name
        assert values[1][name] == pytest.approx(value), name


def test_names_come_lazily_and_unknown_ones_are_refused():
    assert set(metrics.__all__) == set(dir(metrics))
    for name in metrics.__all__:
        assert getattr(metrics, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'accurracy'"):
        metrics.accurracy  # noqa: B018
