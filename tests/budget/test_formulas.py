"""Formulas against sums counted by hand, by loops, and against what a library really does."""

from __future__ import annotations

import ast
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetcl.budget import formulas
from budgetcl.errors import UserError

sizes = st.integers(1, 5)


def test_no_torch_is_needed() -> None:
    code = (
        "import sys; from budgetcl.budget import formulas; "
        "bad = {'torch', 'numpy', 'torchvision'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_integers_come_out() -> None:
    source = Path(formulas.__file__).read_text(encoding="utf-8")
    assert not any(isinstance(node, ast.Div) for node in ast.walk(ast.parse(source)))
    assert isinstance(formulas.kmeans_seeding(100, 7, 3), int)


@given(sizes, sizes, sizes, sizes)
def test_matrix_products_count_each_multiply_add_as_two(b: int, m: int, k: int, n: int) -> None:
    count = sum(2 for _ in itertools.product(range(b), range(m), range(n), range(k)))
    assert formulas.matmul((b, m, k), (b, k, n)) == count
    assert formulas.added_matmul((n,), (b, m, k), (b, k, n)) == count
    assert formulas.linear((b, m, k), (n, k)) == count
    assert formulas.matmul((m, k), (k,)) == 2 * m * k  # mv
    assert formulas.matmul((k,), (k,)) == 2 * k  # dot


@given(sizes, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), sizes)
def test_convolutions_count_each_weight_at_each_position(
    n: int, groups: int, i: int, o: int, kernel: int, out: int
) -> None:
    c_in, c_out = groups * i, groups * o
    count = 0
    for _ in itertools.product(range(n), range(out), range(out)):  # images and positions of the output
        for channel in range(c_out):
            group = channel // o
            inputs = [c for c in range(c_in) if c // i == group]
            count += 2 * len(inputs) * kernel * kernel
    shapes = (n, c_in, out + kernel - 1, out + kernel - 1), (c_out, i, kernel, kernel)
    assert formulas.convolution(*shapes, out=(n, c_out, out, out)) == count
    grad = (n, c_out, out, out)
    for mask in itertools.product([False, True], repeat=3):
        backward = formulas.convolution_backward(grad, *shapes, output_mask=mask)
        assert backward == count * (mask[0] + mask[1])


def test_a_transposed_convolution_counts_each_weight_at_each_position_of_its_input() -> None:
    x, weight, out = (2, 4, 5, 5), (4, 3, 2, 2), (2, 3, 10, 10)
    assert formulas.convolution(x, weight, transposed=True, out=out) == 2 * 2 * 25 * 4 * 3 * 4
    backward = formulas.convolution_backward(out, x, weight, transposed=True, output_mask=(True, True, True))
    assert backward == 2 * formulas.convolution(x, weight, transposed=True, out=out)


@given(sizes, sizes, sizes, sizes, sizes)
def test_attention_is_two_products_forward_and_four_backward(
    b: int, heads: int, length: int, d: int, keys: int
) -> None:
    q, k, v = (b, heads, length, d), (b, heads, keys, d), (b, heads, keys, d + 1)
    scores = formulas.matmul((b * heads, length, d), (b * heads, d, keys))
    values = formulas.matmul((b * heads, length, keys), (b * heads, keys, d + 1))
    assert formulas.attention(q, k, v) == scores + values
    assert formulas.attention_backward((b, heads, length, d + 1), q, k, v) == 2 * (scores + values)


@given(sizes, sizes, sizes, sizes)
def test_an_attention_layer_is_its_projections_and_its_attention(n: int, length: int, heads: int, width: int) -> None:
    d = heads * width
    projections = 4 * formulas.linear((n, length, d), (d, d))
    attention = formulas.attention(*[(n, heads, length, width)] * 3)
    x = (n, length, d)
    assert formulas.multi_head_attention(x, x, x, embed_dim=d) == projections + attention
    hidden = 3 * d
    layer = formulas.encoder_layer(x, *[(d,)] * 8, (hidden, d), embed_dim=d)
    assert layer == projections + attention + 2 * formulas.linear(x, (hidden, d))


def test_a_product_by_broadcasting_costs_as_the_matrix_product_and_the_rest_is_free() -> None:
    n, m, d = 4, 5, 3
    assert formulas.broadcast((n, 1, d), (m, d), out=(n, m, d)) == formulas.matmul((n, d), (d, m))
    assert formulas.broadcast((n, d), (n, d), out=(n, d)) == 0
    assert formulas.broadcast((n, d), (d,), out=(n, d)) == 0
    assert formulas.broadcast((), (n, d), out=(n, d)) == 0
    assert formulas.broadcast((1,), (), out=(1,)) == 0


def test_distances_cost_what_a_nearest_neighbour_search_costs() -> None:
    assert formulas.distances((7, 3), (11, 3), out=(7, 11)) == formulas.knn(7, 11, 3) == 7 * 11 * 9
    assert formulas.pairwise_distances((7, 3), out=(21,)) == 21 * 9
    assert formulas.distances_backward((7, 11), (7, 3), (11, 3)) == 7 * 11 * 9


def _lu_by_hand(n: int) -> int:
    """Count the operations of Gaussian elimination one by one."""
    count = 0
    for pivot in range(n):
        for _ in range(pivot + 1, n):
            count += 1 + 2 * (n - pivot - 1)
    return count


def _cholesky_by_hand(n: int) -> int:
    count = 0
    for j in range(n):
        count += (n - j) * (2 * j + 1)  # one entry of column j: j multiply-adds and a division or root
    return count


@pytest.mark.parametrize("n", [50, 200])
def test_linear_algebra_has_the_leading_terms_of_its_algorithms(n: int) -> None:
    assert formulas.lu(n) == pytest.approx(_lu_by_hand(n), rel=1.6 / n)
    assert formulas.cholesky(n) == pytest.approx(_cholesky_by_hand(n), rel=4 / n)
    assert formulas.solve(n, 4) == formulas.lu(n) + 2 * n * n * 4
    assert formulas.inverse(n) == pytest.approx(formulas.solve(n, n) * 3 / 4, rel=0.01)  # 2n^3 against 8n^3 / 3
    assert formulas.eigh(n) == 9 * n**3


def test_linear_algebra_is_counted_per_matrix_of_a_batch() -> None:
    def price(operator: str, *shapes: tuple[int, ...]) -> int:
        return formulas.recompute({"operator": operator, "shapes": shapes, "attributes": {}})

    assert price("aten::linalg_cholesky_ex", (5, 6, 6)) == 5 * formulas.cholesky(6)
    assert price("aten::linalg_inv_ex", (6, 6)) == formulas.inverse(6)
    assert price("aten::_linalg_eigh", (2, 6, 6)) == 2 * formulas.eigh(6)
    assert price("aten::_linalg_solve_ex", (6, 6), (6, 4)) == formulas.solve(6, 4)
    assert price("aten::_linalg_solve_ex", (5, 6, 6), (5, 6, 4)) == 5 * formulas.solve(6, 4)
    assert price("aten::_linalg_solve_ex", (6, 6), (6,)) == formulas.solve(6)
    assert price("aten::linalg_lu_solve", (6, 6), (6,), (6, 4)) == 2 * 36 * 4
    assert price("aten::cholesky_solve", (6, 4), (6, 6)) == 2 * 36 * 4
    assert price("aten::linalg_solve_triangular", (6, 6), (6, 4)) == 36 * 4


def test_work_that_torch_does_not_see_costs_what_the_rules_say() -> None:
    n, k, d, iterations, c = 100, 7, 16, 3, 5
    assert formulas.kmeans(n, k, d, iterations) == 3200 + 3 * (22400 + 2100 + 224 + 1600 + 112)
    assert formulas.kmeans_seeding(n, k, d) == 3200 + 6 * (2 + 1) * (3200 + 300)
    assert formulas.kmeans_seeding(n, 1, d) == 3200
    assert formulas.herding(n, d, 10) == 1600 + 10 * (3200 + 32)
    assert formulas.knn(3, n, d) == 3 * 100 * 35
    assert formulas.approximate_knn(1234, d) == 1234 * 35
    assert formulas.nearest_mean(n, d, c) == 1600 + 2 * 1600 * 5
    assert formulas.scatter(n, d) == 2 * 100 * 256
    assert formulas.discriminant(d, c) == 4096 // 3 + 4 * 256 * 5 + 2 * 16 * 5
    assert formulas.recursive_least_squares(8, d, c) == 4 * 8 * 256 + 3 * 64 * 16 + 512 // 3 + 4 * 8 * 16 * 5 + 64 * 5
    assert formulas.scores(n, c) == 2500
    assert formulas.fisher(10, 1000, 50) == 10 * 1100
    assert formulas.gradient_scores(10, 1000) == 10_000
    assert formulas.gradient_diversity(n, c, d, 10) == 100 * (63 + 10 * 44)
    assert formulas.descent(50) == 100
    assert [f(10) for f in (formulas.sgd, formulas.adam, formulas.adamw, formulas.ema)] == [60, 120, 140, 30]


def test_the_price_of_kmeans_is_that_of_an_implementation_that_counts() -> None:
    """A Lloyd iteration written with products and norms, its operations counted array by array."""
    n, k, d = 30, 4, 6
    x, centres = np.random.default_rng(0).normal(size=(n, d)), np.random.default_rng(1).normal(size=(k, d))
    count = 2 * x.size  # squared norms of the samples, once
    for _ in range(2):
        product = x @ centres.T
        count += 2 * product.size * d
        norms = (centres**2).sum(1)
        count += 2 * centres.size
        distance = norms - 2 * product  # a product and a sum each, and one comparison for the smallest
        nearest = distance.argmin(1)
        count += 3 * distance.size
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, x)
        count += x.size
        centres = sums / np.maximum(1, np.bincount(nearest, minlength=k))[:, None]
        count += centres.size
    assert formulas.kmeans(n, k, d, 2) == count


def test_an_item_survives_json_and_is_recomputed() -> None:
    item = {
        "operator": "aten::convolution",
        "shapes": [(2, 3, 8, 8), (4, 3, 3, 3)],
        "attributes": {"transposed": False, "out": (2, 4, 6, 6)},
    }
    assert formulas.recompute(json.loads(json.dumps(item))) == 2 * 2 * 36 * 4 * 27


def test_a_price_is_recomputed_with_the_part_it_includes() -> None:
    product = {"operator": "aten::mm", "shapes": [[2, 3], [3, 4]], "attributes": {}, "times": 5, "flops": 48}
    step = {"operator": "optimiser::SGD", "shapes": [], "attributes": {"parameters": 10}, "times": 1, "flops": 60}
    prices = {"p": {"items": [product]}, "q": {"items": [step], "includes": "p"}}
    assert formulas.reprice(prices, "q") == 5 * 48 + 60
    with pytest.raises(UserError, match="no price 'r'"):
        formulas.reprice(prices, "r")


def test_an_operator_without_a_formula_is_named_with_the_nearest_that_has_one() -> None:
    with pytest.raises(UserError, match=r"aten::mmm.*did you mean 'aten::mm'"):
        formulas.recompute({"operator": "aten::mmm", "shapes": [], "attributes": {}})


@pytest.mark.parametrize(("operator", "formula"), [("mm", len), ("a::b::c", len), (3, len), ("mylib::scan", 7)])
def test_a_bad_registration_is_refused(operator: object, formula: object) -> None:
    with pytest.raises(UserError):
        formulas.register(operator, formula)  # type: ignore[arg-type]
    assert "mylib::scan" not in formulas.FORMULAS
