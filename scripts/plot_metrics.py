"""Draw the pictures of docs/metrics.md into docs/img. Every number in them is computed by budgetcl.metrics.

python scripts/plot_metrics.py [--out docs/img]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from budgetcl import metrics
from budgetcl.report.blind import new_figure, svg

BLUE, RED, GREEN, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#8a919c", "#1c2430"
BURST, CLASSES = 48, 300


def uploads(n: int = 20_000, seed: int = 0) -> np.ndarray:
    """Return labels of one uploader: after each upload the label is redrawn with probability 1 / BURST."""
    rng = np.random.default_rng(seed)
    redrawn = rng.random(n) < 1 / BURST
    drawn = rng.choice(CLASSES, size=n, p=share())
    return drawn[np.maximum.accumulate(np.where(redrawn, np.arange(n), 0))]


def share() -> np.ndarray:
    """Return the power law that labels are drawn from."""
    p = 1 / np.arange(1, CLASSES + 1)
    return p / p.sum()


def several(n: int, width: float = 6.8, height: float = 2.6) -> tuple[Any, list[Any]]:
    """Return a figure with n pairs of axes side by side."""
    figure, axes = new_figure(width, height)
    axes.remove()
    found = [figure.add_subplot(1, n, i + 1) for i in range(n)]
    for each in found:
        each.spines[["top", "right"]].set_visible(False)
    return figure, found


def protocol() -> Any:
    """What is known, what is predicted, at which lead."""
    figure, axes = new_figure(6.8, 1.9)
    axes.grid(False)
    chunk, seen, shift = 4, 8, 8
    for t in range(24):
        known, now = t < seen, seen <= t < seen + chunk
        ahead = seen + shift <= t < seen + shift + chunk
        colour = GREY if known else BLUE if now else RED if ahead else "white"
        axes.add_patch(_box(t, 0, colour))
        axes.text(
            t + 0.45, 0.42, str(t), ha="center", va="center", fontsize=8, color="white" if colour != "white" else INK
        )
    axes.text(seen / 2, 1.2, "labels known: seen = 8", ha="center", color="#5c6470", fontsize=9)
    axes.text(seen + chunk / 2, 1.2, "shift 0: online", ha="center", color=BLUE, fontsize=9)
    axes.text(seen + shift + chunk / 2, 1.2, "shift S = 8: near future", ha="center", color=RED, fontsize=9)
    for end, colour, height in ((seen + 2, BLUE, -0.35), (seen + shift + 2, RED, -0.85)):
        axes.annotate("", (end, height), (seen, height), arrowprops={"arrowstyle": "->", "color": colour})
        axes.text(end + 0.2, height, f"lead of index {end}: {end - seen}", va="center", fontsize=8, color=colour)
    axes.set(xlim=(-0.3, 24.3), ylim=(-1.2, 1.7), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return figure


def _box(x: float, y: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 0.9, 0.9, facecolor=colour, edgecolor="#b8bec7", linewidth=0.8)


def bursts() -> Any:
    """Why online accuracy misleads: the last label against its closed form, and against the running majority."""
    labels = uploads(200_000)
    lags = np.unique(np.logspace(0, 10, 40, base=2).astype(int))
    figure, axes = new_figure()
    equal = metrics.label_autocorrelation(labels, lags)
    kept = (1 - 1 / BURST) ** lags
    axes.plot(lags, 100 * equal, "o", color=BLUE, markersize=4, label="measured P(y[t+k] = y[t])")
    axes.plot(lags, 100 * (kept + (1 - kept) * (share() ** 2).sum()), color=BLUE, label="closed form")
    blind = metrics.blind_accuracy(labels, [1, None], [int(lag) - 1 for lag in lags])
    axes.plot(lags, 100 * blind[0], "--", color=RED, label="blind, last label (shift k - 1)")
    axes.plot(lags, 100 * blind[1], ":", color=GREY, label="blind, running majority")
    axes.set(xscale="log", xlabel="lag k, samples", ylabel="%", title="A stream that stays 48 uploads with a label")
    axes.legend(frameon=False, fontsize=8)
    return figure


def shift() -> Any:
    """How the shift is chosen."""
    labels = uploads(16_000)
    delays = [0, 8, 16, 32, 64, 96, 128, 160, 192, 224, 240]
    curve = metrics.shift_curve(labels, [1, 5, 20, 100, 500, None], delays, block=1000, chunk=16)
    figure, axes = new_figure()
    axes.plot(delays, 100 * np.array(curve.accuracy), "o-", color=BLUE, label="best blind classifier")
    axes.plot(delays, 100 * np.array(curve.null), color=GREY, label="shuffled in blocks of 1,000, 95th percentile")
    axes.plot(delays, 100 * (np.array(curve.null) + curve.margin), "--", color=GREY, label="+ margin")
    if curve.shift is not None:
        axes.axvline(curve.shift, color=RED)
        axes.text(curve.shift, 80, f" S = {curve.shift}", color=RED)
    axes.set(
        xlabel="delay, samples",
        ylabel="accuracy, %",
        title="The smallest delay that gives nothing away",
        ylim=(0, None),
    )
    axes.legend(frameon=False, fontsize=8)
    return figure


def retention() -> Any:
    """By age, for two imagined learners: one knows its last 2,000 samples, the other half of everything."""
    rng = np.random.default_rng(0)
    n = 16_000
    origin, seen = rng.integers(0, n, 6000), np.full(6000, n)
    target = np.ones(6000, dtype=int)
    recent = (n - origin < 2000) & (rng.random(6000) < 0.9)
    steady = rng.random(6000) < 0.5
    figure, axes = new_figure(height=3.0)
    for name, hits, colour in (("knows the last 2,000 only", recent, RED), ("knows half of everything", steady, BLUE)):
        kept = metrics.information_retention(hits.astype(int), target, origin, seen, bins=16)
        middle = (np.array(kept.edges[1:]) + np.array(kept.edges[:-1])) / 2
        axes.plot(middle, 100 * np.array(kept.by_age), "o-", color=colour, label=f"{name}: {100 * kept.accuracy:.0f} %")
    axes.set(xlabel="age = seen - origin, samples", ylabel="accuracy, %", title="Information retention", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=8)
    return figure


def matrix() -> Any:
    """Which cells of the matrix each number looks at."""
    values = np.array(
        [[0.80, 0.15, 0.10, 0.05], [0.60, 0.90, 0.20, 0.10], [0.70, 0.50, 0.75, 0.20], [0.40, 0.65, 0.55, 0.85]]
    )
    figure, axes = several(3, height=2.7)
    average, lost, ahead = np.tril(np.ones((4, 4), bool)), np.zeros((4, 4), bool), np.eye(4, k=1, dtype=bool)
    lost[3, :3] = lost[[0, 1, 2], [0, 1, 2]] = True
    numbers = (
        (
            average,
            f"average accuracy {metrics.average_accuracy(values):.3f}\n"
            f"final (last row) {metrics.final_accuracy(values):.3f}",
        ),
        (lost, f"forgetting {metrics.forgetting(values):.3f}\nbackward {metrics.backward_transfer(values):.3f}"),
        (ahead, f"forward transfer {metrics.forward_transfer(values, [0.05] * 4):.3f}\n(untrained: 0.05)"),
    )
    for each, (cells, title) in zip(axes, numbers):
        each.imshow(cells, cmap="Blues", vmin=0, vmax=2.2)
        for i in range(4):
            for j in range(4):
                each.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8)
        each.set(xticks=range(4), yticks=range(4), xlabel="task")
        each.set_title(title, fontsize=9)
    axes[0].set_ylabel("after step")
    return figure


def spending() -> Any:
    """Area under the curve, and what a budget buys."""
    spent, early, late = [1, 2, 4, 6, 8], [0.30, 0.50, 0.60, 0.62, 0.63], [0.05, 0.15, 0.35, 0.60, 0.70]
    figure, axes = new_figure(height=3.0)
    for name, values, colour in (("early", early, BLUE), ("late", late, RED)):
        area, five = metrics.anytime_accuracy(values, spent), metrics.accuracy_at_budget(values, spent, 5)
        axes.plot(spent, values, "o-", color=colour, label=f"{name}: anytime {area:.2f}, at a budget of 5 {five:.2f}")
        axes.fill_between(spent, values, color=colour, alpha=0.10)
    axes.axvline(5, color=GREY, linestyle="--")
    axes.set(xlabel="spent (FLOPs, samples, seconds)", ylabel="accuracy", title="Anytime accuracy", ylim=(0, 0.8))
    axes.legend(frameon=False, fontsize=8)
    return figure


def models() -> Any:
    """Flips, the long tail, calibration."""
    rng = np.random.default_rng(0)
    figure, (flips, tail, sure) = several(3, width=8.4, height=2.8)
    target = np.zeros(1000, dtype=int)
    old, new = (rng.random(1000) < 0.70).astype(int) ^ 1, (rng.random(1000) < 0.75).astype(int) ^ 1
    shares = [
        metrics.accuracy(old, target),
        metrics.accuracy(new, target),
        metrics.negative_flip_rate(old, new, target),
    ]
    flips.bar(["old", "new", "flips"], [100 * value for value in shares], color=[GREY, BLUE, RED])
    flips.set_title("5 points better,\nyet many flips", fontsize=9)
    flips.set_ylabel("%")
    train = rng.choice(CLASSES, size=20_000, p=share())
    test = rng.integers(0, CLASSES, 4000)
    known = np.bincount(train, minlength=CLASSES)[test]
    pred = np.where(rng.random(4000) < known / (known + 30), test, -1)
    groups = metrics.longtail_accuracy(pred, test, train)
    tail.bar(list(groups), [100 * value for value in groups.values()], color=[BLUE, GREEN, RED])
    tail.axhline(100 * metrics.accuracy(pred, test), color=INK, linestyle="--", linewidth=1)
    tail.set_title("head, middle, tail\n(dashed: all)", fontsize=9)
    confidence = rng.random(20_000)
    hits = rng.random(20_000) < confidence**1.6
    edges = np.linspace(0, 1, 16)
    place = np.digitize(confidence, edges[1:-1])
    sure.bar(
        edges[:-1],
        [hits[place == b].mean() for b in range(15)],
        width=1 / 15,
        align="edge",
        color=BLUE,
        edgecolor="white",
    )
    sure.plot([0, 1], [0, 1], color=INK, linewidth=1)
    sure.set_title(
        f"calibration error {metrics.calibration_error(confidence, hits):.3f}\n(accuracy by confidence)", fontsize=9
    )
    return figure


def ranks() -> Any:
    """Ranks with what is not sure left open."""
    rng = np.random.default_rng(3)
    quality = np.array([0.62, 0.60, 0.598, 0.56, 0.558, 0.555, 0.50, 0.44])
    scores = quality[:, None] + 0.02 * rng.normal(size=(8, 40)) + 0.08 * rng.normal(size=40)
    found = metrics.rank_interval(scores)
    figure, axes = new_figure(height=3.0)
    for i in np.argsort(found.mean)[::-1]:
        name = f"{chr(65 + i)}  {100 * found.mean[i]:.1f} %"
        axes.plot([found.low[i], found.high[i]], [name, name], color=BLUE, linewidth=6, solid_capstyle="round")
    axes.invert_yaxis()
    axes.set(xlabel="rank", title="Ranks at 95 %, all comparisons at once", xticks=range(1, 9))
    return figure


def main() -> None:
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/img"))
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (protocol, bursts, shift, retention, matrix, spending, models, ranks):
        path = folder / f"metrics_{draw.__name__}.svg"
        path.write_text(svg(draw()), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
