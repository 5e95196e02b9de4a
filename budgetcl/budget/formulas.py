"""What an operation costs, from integers alone: FLOP = 2 x multiply-add. No torch, so anyone can recompute a bill.

A formula takes the shapes of an operator's tensor arguments, in order, and by name the few other arguments that
matter; ``out`` is the shape of its (first) result. It counts the model's work: no recomputation, no padding, nothing
that one kernel does and another does not. An item of a bill holds exactly what its formula takes, see
:func:`recompute`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import floor, log, prod
from typing import Any

from budgetcl.errors import UserError, nearest

ACCOUNTING_VERSION = 1
"""Raised by one when a formula or a rule of the ledger changes a number; every record carries it."""

Shape = Sequence[int]
Formula = Callable[..., int]


# --- matrix products --------------------------------------------------------------------------------------------------


def matmul(a: Shape, b: Shape) -> int:
    """(..., m, k) times (..., k, n): 2mnk for each matrix of the batch. A missing dimension counts as 1."""
    *batch, m, k = a if len(a) > 1 else (1, *a)
    n = b[-1] if len(b) > 1 else 1
    return 2 * prod(batch) * m * k * n


def added_matmul(bias: Shape, a: Shape, b: Shape) -> int:
    """A bias plus a product: as the product, since additions of a bias are part of its multiply-adds."""
    return matmul(a, b)


def linear(x: Shape, weight: Shape) -> int:
    """(..., in) times (out, in) transposed: 2 x rows x in x out."""
    return 2 * prod(x) * prod(weight[:-1])


def linear_backward(x: Shape, grad: Shape, weight: Shape, *, output_mask: Sequence[bool]) -> int:
    """One forward for the gradient of the input, one for that of the weight, each where the mask asks for it."""
    return linear(x, weight) * (bool(output_mask[0]) + bool(output_mask[1]))


def outer_product(vector: Shape, *others: Shape) -> int:
    """addr(matrix, a, b): 2 per element of the outer product; ger(a, b) likewise."""
    a, b = (vector, *others)[-2:]
    return 2 * prod(a) * prod(b)


def broadcast(a: Shape, b: Shape, *, out: Shape) -> int:
    """An outer product or outer difference spelled as broadcasting: 2 per element of the result.

    It applies where the result has more elements than each of the two, which is how a matrix product or a distance
    is written by hand ((n, 1, d) with (m, d), then a sum, which is free). Everything else pointwise is free. A size
    that stands for repeated memory (``expand``) counts as 1.
    """
    most = prod(out)
    return 2 * most if 1 < prod(a) < most and 1 < prod(b) < most else 0


def trilinear(
    a: Shape, b: Shape, c: Shape, *, expand1: Sequence[int], expand2: Sequence[int], expand3: Sequence[int]
) -> int:
    """A product of three tensors, broadcast over new dimensions, then summed: 3 per element of the product."""
    shapes = []
    for shape, new in ((a, expand1), (b, expand2), (c, expand3)):
        full = list(shape)
        for dim in sorted(new):
            full.insert(dim, 1)
        shapes.append(full)
    return 3 * prod(max(sizes) for sizes in zip(*shapes))


# --- convolutions -----------------------------------------------------------------------------------------------------


def convolution(x: Shape, weight: Shape, *, transposed: bool = False, out: Shape) -> int:
    """Each weight meets each position of the output (of the input, if transposed) of each image: 2 x their product.

    x is (n, c, ...), the weight (c_out, c / groups, ...) or, transposed, (c, c_out / groups, ...): groups are in its
    shape. Padding counts as work, as everywhere.
    """
    return 2 * x[0] * prod((x if transposed else out)[2:]) * prod(weight)


def convolution_backward(
    grad: Shape, x: Shape, weight: Shape, *, transposed: bool = False, output_mask: Sequence[bool]
) -> int:
    """One forward for the gradient of the input, one for that of the weight, each where the mask asks for it."""
    forward = convolution(x, weight, transposed=transposed, out=grad)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))


# --- attention --------------------------------------------------------------------------------------------------------


def attention(query: Shape, key: Shape, value: Shape) -> int:
    """softmax(Q K') V of (batch, heads, length, d): 2 x batch x heads x length x length' x (d + d_v), masks or not."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape) -> int:
    """Twice the forward for every backend: what a kernel recomputes is its own affair."""
    return 2 * attention(query, key, value)


def multi_head_attention(query: Shape, key: Shape, value: Shape, *, embed_dim: int) -> int:
    """Projections of query, key, value and output, (n, length, d) each, and the attention between them."""
    n, length, _ = query
    keys = key[1]
    return 4 * n * embed_dim**2 * (length + keys) + 4 * n * length * keys * embed_dim


def encoder_layer(
    x: Shape,
    in_weight: Shape,
    in_bias: Shape,
    out_weight: Shape,
    out_bias: Shape,
    norm_weight_1: Shape,
    norm_bias_1: Shape,
    norm_weight_2: Shape,
    norm_bias_2: Shape,
    hidden: Shape,
    *,
    embed_dim: int,
) -> int:
    """A transformer's encoder layer: self-attention of (n, length, d) and two linear layers, d to hidden and back."""
    return multi_head_attention(x, x, x, embed_dim=embed_dim) + 2 * linear(x, hidden)


# --- distances --------------------------------------------------------------------------------------------------------


def distances(a: Shape, b: Shape, *, out: Shape) -> int:
    """Distances between all rows of (..., p, d) and (..., r, d): 2d + 3 a pair, whatever the norm (as :func:`knn`)."""
    return prod(out) * (2 * a[-1] + 3)


def distances_backward(grad: Shape, a: Shape, b: Shape) -> int:
    """The gradient of one side: 2d + 3 a pair, as the forward."""
    return prod(grad) * (2 * a[-1] + 3)


def pairwise_distances(a: Shape, *, out: Shape) -> int:
    """Distances between all pairs of rows of (n, d): 2d + 3 a pair."""
    return prod(out) * (2 * a[-1] + 3)


# --- linear algebra, counts of Golub & Van Loan, Matrix Computations --------------------------------------------------


def cholesky(n: int) -> int:
    """Cholesky decomposition of n x n: n^3 / 3 (Golub & Van Loan, 4.2.5)."""
    return n**3 // 3


def lu(n: int) -> int:
    """LU decomposition of n x n, and with it the determinant: 2n^3 / 3 (Golub & Van Loan, 3.2.6)."""
    return 2 * n**3 // 3


def solve(n: int, columns: int = 1) -> int:
    """Solve n x n against k columns: 2n^3 / 3 for LU and 2n^2 k for two triangular solves (Golub & Van Loan, 3.2)."""
    return lu(n) + 2 * n**2 * columns


def inverse(n: int) -> int:
    """Inverse of n x n: 2n^3, LU and two triangular inversions (Higham, Accuracy and Stability, 14.3)."""
    return 2 * n**3


def eigh(n: int) -> int:
    """Eigenvalues and vectors of a symmetric n x n: 9n^3 (Golub & Van Loan, 8.3: symmetric QR with vectors)."""
    return 9 * n**3


def _per_matrix(count: Callable[[int], int]) -> Formula:
    def formula(a: Shape) -> int:
        return prod(a[:-2]) * count(a[-1])

    return formula


def _solves(a: Shape, b: Shape) -> int:
    """A decomposition and two triangular solves of (..., n, n) against (..., n, k) or (..., n)."""
    n = a[-1]
    return prod(a[:-2]) * lu(n) + 2 * n * _right_hand(a, b)


def _substitutions(b: Shape, a: Shape) -> int:
    """Two triangular solves against an existing factor: 2n^2 k."""
    return 2 * a[-1] * prod(b)


def _factored_solve(factor: Shape, pivots: Shape, b: Shape) -> int:
    """Two triangular solves against an LU decomposition: 2n^2 k."""
    return 2 * factor[-1] * prod(b)


def _triangular(a: Shape, b: Shape) -> int:
    """One triangular solve: n^2 k."""
    return a[-1] * prod(b)


def _triangular_old(b: Shape, a: Shape) -> int:
    return _triangular(a, b)


def _right_hand(a: Shape, b: Shape) -> int:
    """Elements of the right-hand side, broadcast over the matrices where it is a vector or one matrix for all."""
    return prod(b) if len(b) >= len(a) else prod(a[:-2]) * prod(b[-2:] if len(b) > 1 and len(a) > 2 else b)


# --- work torch does not see (n samples, d features) ------------------------------------------------------------------


def kmeans(n: int, clusters: int, d: int, iterations: int) -> int:
    """Lloyd's k-means: 2nd + I(2nkd + 3nk + 2kd + nd + kd).

    Once the squared norms of the samples (2nd); per iteration the products with the centres (2nkd), distances and the
    smallest of each row (3nk), the centres' norms (2kd), the sums per cluster (nd) and the division (kd). Charge the
    largest number of iterations first and refund those not made.
    """
    k = clusters
    return 2 * n * d + iterations * (2 * n * k * d + 3 * n * k + 2 * k * d + n * d + k * d)


def kmeans_seeding(n: int, clusters: int, d: int) -> int:
    """Greedy k-means++ (Arthur & Vassilvitskii, SODA 2007): 2nd + (k - 1)(2 + floor(ln k))(2nd + 3n).

    Each further centre tries 2 + floor(ln k) candidates, as scikit-learn does, with one row of distances each.
    """
    trials = 2 + floor(log(clusters))
    return 2 * n * d + (clusters - 1) * trials * (2 * n * d + 3 * n)


def herding(n: int, d: int, picks: int) -> int:
    """Herding (iCaRL, CVPR 2017, algorithm 4): nd + I(2nd + 2d), I = picks, those made again included.

    The mean (nd); per pick one product of all samples with the target (2nd) and the target's update (2d).
    """
    return n * d + picks * (2 * n * d + 2 * d)


def knn(queries: int, n: int, d: int) -> int:
    """Exact nearest neighbours: q n (2d + 3): a product, two additions and a comparison per pair."""
    return queries * n * (2 * d + 3)


def approximate_knn(evaluations: int, d: int) -> int:
    """Approximate neighbours (HNSW): distance evaluations, from the index's own statistics, x (2d + 3)."""
    return evaluations * (2 * d + 3)


def nearest_mean(n: int, d: int, classes: int) -> int:
    """Nearest class mean: nd to add n features to their means, 2ndc to compare n features with c means."""
    return n * d + 2 * n * d * classes


def scatter(n: int, d: int) -> int:
    """The sum of the outer products of n samples, a covariance's: 2nd^2 (Hayes & Kanan, CVPR workshops 2020)."""
    return 2 * n * d**2


def discriminant(d: int, classes: int) -> int:
    """The weights of a linear discriminant, from sums over the samples: d^3/3 + 4d^2 c + 2dc.

    The means' outer products (2d^2 c), a Cholesky decomposition, two triangular solves for each class (2d^2 c) and the
    offsets (2dc). An explicit inverse by LU instead of the decomposition would cost 8d^3/3.
    """
    return cholesky(d) + 4 * d**2 * classes + 2 * d * classes


def recursive_least_squares(n: int, d: int, classes: int) -> int:
    """One batch of recursive least squares (ACIL, NeurIPS 2022): 4nd^2 + 3n^2 d + n^3/3 + 4ndc + n^2 c.

    Woodbury's identity: x R (2nd^2), K = x R x' (2n^2 d), its Cholesky decomposition (n^3/3), triangular solves against
    x R (n^2 d) and against the errors (n^2 c), the errors (2ndc), the updates of R (2nd^2) and of W (2ndc).
    """
    c = classes
    return 4 * n * d**2 + 3 * n**2 * d + cholesky(n) + 4 * n * d * c + n**2 * c


def scores(n: int, classes: int) -> int:
    """Loss, confidence, margin or entropy of n logit rows: 5nc (maximum, difference, exponential, sum and another)."""
    return 5 * n * classes


def fisher(samples: int, gradient: int, parameters: int) -> int:
    """The diagonal Fisher information (EWC, PNAS 2017): n(S + 2P): a gradient a sample, squared and added."""
    return samples * (gradient + 2 * parameters)


def gradient_scores(samples: int, gradient: int) -> int:
    """Scores from one gradient a sample (GSS, NeurIPS 2019): nS."""
    return samples * gradient


def gradient_diversity(n: int, classes: int, d: int, compared: int) -> int:
    """Greedy selection by last-layer gradients (GSS, NeurIPS 2019, algorithm 2): n(3(c + d) + m(2(c + d) + 2)).

    Both factors of a gradient, an error (c) and features (d), are scaled to length 1; each of n is then compared with
    m others: two products, their product and a comparison.
    """
    size = classes + d
    return n * (3 * size + compared * (2 * size + 2))


def descent(parameters: int) -> int:
    """A plain step against the gradient: 2P."""
    return 2 * parameters


def sgd(parameters: int) -> int:
    """SGD with momentum and weight decay: 6P (decay, momentum and step: a multiplication and an addition each)."""
    return 6 * parameters


def adam(parameters: int) -> int:
    """Adam (ICLR 2015, algorithm 1): 12P (moments 7, root, division, epsilon, step 2)."""
    return 12 * parameters


def adamw(parameters: int) -> int:
    """AdamW (ICLR 2019): 14P, Adam and a decoupled decay."""
    return 14 * parameters


def ema(parameters: int) -> int:
    """An exponential moving average or a merge of weights: 3P."""
    return 3 * parameters


def maf(flops: int, memory: int, reference: int) -> int:
    """Memory-adjusted FLOPs: FLOPs x peak bytes / peak bytes of the reference update (FoMo-in-Flux, NeurIPS 2024)."""
    return flops * memory // reference


# --- the list, and bills ----------------------------------------------------------------------------------------------

FORMULAS: dict[str, Formula] = {}
"""Operator, as torch names it ("aten::mm"), to its formula. "optimiser::SGD" and the like take parameters=P."""


def _list(namespace: str, formula: Formula, names: str) -> None:
    for name in names.split():
        FORMULAS[f"{namespace}::{name}"] = formula


_list("aten", matmul, "mm bmm mv dot vdot _int_mm _scaled_mm")
_list("aten", added_matmul, "addmm addmv addbmm baddbmm _addmm_activation")
_list("aten", linear, "linear mkldnn_linear")
_list("aten", linear_backward, "linear_backward")
_list("aten", outer_product, "addr ger")
_list("aten", broadcast, "add sub rsub mul div")
_list("aten", trilinear, "_trilinear")
_list("aten", convolution, "convolution _convolution convolution_overrideable cudnn_convolution miopen_convolution")
_list("aten", convolution, "mkldnn_convolution thnn_conv2d _slow_conv2d_forward slow_conv3d_forward _conv_depthwise2d")
_list("aten", convolution_backward, "convolution_backward convolution_backward_overrideable")
_list(
    "aten",
    attention,
    "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps",
)
_list(
    "aten",
    attention_backward,
    "_scaled_dot_product_flash_attention_backward _scaled_dot_product_flash_attention_for_cpu_backward "
    "_scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward "
    "_scaled_dot_product_fused_attention_overrideable_backward",
)
_list("aten", multi_head_attention, "_native_multi_head_attention")
_list("aten", encoder_layer, "_transformer_encoder_layer_fwd")
_list("aten", distances, "_cdist_forward _euclidean_dist")
_list("aten", distances_backward, "_cdist_backward")
_list("aten", pairwise_distances, "_pdist_forward")
_list("aten", _per_matrix(cholesky), "linalg_cholesky_ex cholesky")
_list("aten", _per_matrix(lu), "linalg_lu_factor_ex linalg_lu _linalg_det _linalg_slogdet cholesky_inverse")
_list("aten", _per_matrix(inverse), "linalg_inv_ex inverse")
_list("aten", _per_matrix(eigh), "_linalg_eigh")
_list("aten", _solves, "_linalg_solve_ex")
_list("aten", _substitutions, "cholesky_solve _cholesky_solve_helper")
_list("aten", _factored_solve, "linalg_lu_solve")
_list("aten", _triangular, "linalg_solve_triangular")
_list("aten", _triangular_old, "triangular_solve")


def _optimiser(count: Callable[[int], int]) -> Formula:
    def formula(*, parameters: int) -> int:
        return count(parameters)

    return formula


for _name, _count in (("SGD", sgd), ("Adam", adam), ("AdamW", adamw)):
    FORMULAS[f"optimiser::{_name}"] = _optimiser(_count)


@cache
def arguments(operator: str) -> tuple[int | None, tuple[str, ...]]:
    """Return what an operator's formula takes: how many shapes (None: all), and the names of the other arguments."""
    parameters = inspect.signature(FORMULAS[operator]).parameters.values()
    names = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None, names
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters), names


def register(operator: str, formula: Formula) -> None:
    """Give an operator a formula, or replace the one it has.

    Args:
        operator: as torch names it, such as "aten::mm" or "mylib::scan"; "optimiser::Lion" for the optimiser class
            Lion, with a formula that takes ``parameters`` by name.
        formula: from the shapes of the tensor arguments, in order, and by name the other arguments it wants (those of
            the operator's schema, and ``out``: the shape of its first result) to FLOPs.

    Raises:
        UserError: a name without a namespace, or what cannot be called.
    """
    if not isinstance(operator, str) or operator.count("::") != 1:
        raise UserError(f"operator {operator!r} given; a name such as 'aten::mm' or 'optimiser::Lion' is expected")
    if not callable(formula):
        raise UserError(f"the formula of {operator} is {formula!r}; a function of shapes is expected")
    FORMULAS[operator] = formula
    arguments.cache_clear()


def recompute(item: Mapping[str, Any]) -> int:
    """Return the FLOPs of one execution of a bill's item, from its shapes and attributes alone.

    Args:
        item: as prices.json holds it, with keys operator, shapes (a list of shapes; null where an argument was not
            given) and attributes (a mapping).

    Raises:
        UserError: an operator without a formula.
    """
    operator = item["operator"]
    if operator not in FORMULAS:
        raise UserError(
            f"no formula for operator '{operator}' ({nearest(operator, FORMULAS)}): "
            "give one with budgetcl.budget.formulas.register"
        )
    return FORMULAS[operator](*item["shapes"], **item["attributes"])


def reprice(prices: Mapping[str, Mapping[str, Any]], price_id: str) -> int:
    """Return the FLOPs of a price, recomputed from its items, with integers alone.

    Args:
        prices: the content of prices.json: price id -> price. A price may include a part that it has in common with
            others, which is an entry of its own.
        price_id: which one.

    Raises:
        UserError: no such price, or an operator without a formula.
    """
    if price_id not in prices:
        raise UserError(f"no price '{price_id}'; {nearest(price_id, prices)}")
    price = prices[price_id]
    own = sum(item["times"] * recompute(item) for item in price["items"])
    return own + (reprice(prices, price["includes"]) if price.get("includes") else 0)
