"""What the claims' page says, from numbers made up for it; no run is made."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def claims():
    """The plan and the report, as the script imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
        import claims_plan
        import claims_report

        yield claims_plan, claims_report


def found(plan, numbers, seeds=range(5), key="average_accuracy", setting=None):
    """Summaries by run: naive at 0.7, others as far from it as said, moved a little by the seed."""
    cells = {}
    for (method, control), difference in {("naive", ""): 0.0, **numbers}.items():
        for seed in seeds:
            noise = 0.0 if method == "naive" else 0.001 * (seed - 2)
            summary = {key: 0.7 + 0.01 * seed + difference + noise, "group": plan_group(method), "updates": 90}
            cells[((setting or plan.AT_C).folder, method, control, seed)] = summary
    return cells


def plan_group(method):
    groups = {"naive": "baseline", "kd_mse": "distillation", "herding": "sampling", "class_balanced": "sampling"}
    return groups.get(method, "sampling")


def test_each_run_is_planned_once_and_what_a_claim_rests_on_first(claims):
    plan, _ = claims
    jobs = plan.planned(plan.CLAIMS)
    assert len({job.key for job in jobs}) == len(jobs)
    places = {job.key: place for place, job in enumerate(jobs)}
    rests_on, other = (plan.Job(plan.AT_C, method, 4).key for method in ("herding", "polrs"))
    assert places[*plan.Job(plan.AT_C, "herding", 2).key] < places[*rests_on] < places[*other]
    assert "unlimited" not in {job.control for job in jobs}
    assert {job.control for job in plan.planned(["unlimited"])} == {"unlimited"}


def test_what_failed_is_remembered_until_it_is_tried_again(claims, tmp_path):
    import reproduce_claims

    plan, _ = claims
    job, other = plan.Job(plan.AT_C, "herding", 0), plan.Job(plan.AT_C, "kd_mse", 1, "uncharged")
    one, two = (f"{reproduce_claims._name(of)}: failed: because" for of in (job, other))
    file = tmp_path / "failed.txt"
    reproduce_claims._keep_failed(file, {reproduce_claims._name(job)}, [one])
    reproduce_claims._keep_failed(file, {reproduce_claims._name(other)}, [two])
    assert file.read_text("utf-8").splitlines() == [one, two]
    reproduce_claims._keep_failed(file, {reproduce_claims._name(job)}, [])  # it could be run now
    assert file.read_text("utf-8").splitlines() == [two]


def test_other_settings_lie_in_another_folder(claims):
    plan, _ = claims
    one, other = (plan.Setting("a", (f"budget.updates={n}",), 1.0) for n in (3, 4))
    assert one.folder != other.folder


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ({"herding": -0.05, "class_balanced": -0.02}, "shown"),
        ({"herding": -0.05, "class_balanced": +0.03}, "contradicted on this data"),
        ({"herding": -0.05, "class_balanced": +0.009}, "not shown"),  # a gain of a point is not excluded
    ],
)
def test_whether_a_family_beats_naive(claims, differences, verdict):
    plan, report = claims
    measured = report.Measured(found(plan, {(method, ""): d for method, d in differences.items()}))
    naive = measured.numbers(plan.AT_C, "naive")
    gaps = {method: report.gap(measured.numbers(plan.AT_C, method), naive) for method in differences}
    assert report._family(measured, list(differences), gaps, naive)[0] == verdict


@pytest.mark.parametrize(
    ("charged", "uncharged", "verdict"),
    [(-0.05, 0.01, "shown"), (-0.05, -0.04, "contradicted on this data"), (0.02, 0.03, "not shown")],
)
def test_whether_methods_lose_by_their_price(claims, monkeypatch, charged, uncharged, verdict):
    plan, report = claims
    monkeypatch.setattr(report, "save", lambda name, figure: None)
    cells = found(plan, {("kd_mse", ""): charged, ("kd_mse", "uncharged"): uncharged})
    assert report.price(report.Measured(cells)).verdict == verdict


def test_a_difference_is_paired_by_seed_and_needs_two(claims):
    _, report = claims
    assert report.gap({0: 0.5}, {0: 0.4}) is None
    assert report.gap({0: 0.5, 1: 0.6}, {2: 0.4, 3: 0.5}) is None
    paired = report.gap({0: 0.5, 1: 0.9, 2: 0.7}, {0: 0.4, 1: 0.8, 2: 0.6})
    assert paired.interval.estimate == pytest.approx(0.1)
    assert paired.above
    assert paired.seeds == 3


def test_the_page_says_what_is_missing(claims, monkeypatch, tmp_path):
    plan, report = claims
    monkeypatch.setattr(report, "DOCS", tmp_path)
    report.write(found(plan, {("herding", ""): -0.05}, seeds=range(2)))
    page = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "Fewer than two seeds" in page
    assert "not measured" in page
    assert page.count("| methods | 4 |") == 1
    assert (tmp_path / "img" / "claims_methods.svg").exists()
