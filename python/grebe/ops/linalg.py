"""Linear algebra: norms, factorisations, equations. LAPACK through NumPy does the work.

Every derivative is a formula of differentiable ops on the factors (Giles 2008, "Collected matrix
derivative results"; Walter and Lehmann 2012 for QR; Townsend 2016 for SVD), so that all of them can
be differentiated again. A matrix argument may have leading batch dimensions: [..., m, n]. All take
float32 or float64. Matrices on a GPU are factorised on the CPU: their factors, small beside what is
made of them there, go back. D2L sections 2.3.11 and 22.2.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._cpu import Node, TensorBase, grad_enabled, record, wrap
from ..amp import full_precision
from ..autograd import record_many
from ..backend import Array
from ..backend import like as like_array
from ..dtypes import as_dtype, is_floating
from ..tensor import Tensor, expect_float, expect_tensor, method
from .compare import eq, where
from .creation import diag_embed, tril, triu
from .elementwise import abs, add, div, mul, neg, sqrt, sub, unbroadcast
from .indexing import index_select
from .matmul import matmul
from .rare import pow
from .reduce import amax, amin, reduced_float, sum
from .shape import (
    cat,
    diagonal,
    dimension,
    dimensions,
    movedim,
    narrow,
    reshape,
    select,
    through_host,
    transpose,
    unsqueeze,
)

__all__ = [
    "cdist", "chain_matmul", "cholesky", "cross", "det", "dist", "inverse", "kron", "logdet",
    "matrix_power", "norm", "pinverse", "qr", "slogdet", "svd", "trace",
]  # fmt: skip


class LinAlgError(RuntimeError):
    """A matrix is singular, not positive definite, or an iteration did not converge."""


# ---- checks ----


def _matrix(name: str, argument: str, value: Any) -> Array:
    array = expect_float(name, argument, value)
    if array.ndim < 2:
        raise RuntimeError(
            f"{name}: {argument} must have at least 2 dimensions, got shape {list(array.shape)}"
        )
    return array


def _square(name: str, argument: str, value: Any) -> Array:
    array = _matrix(name, argument, value)
    if array.shape[-1] != array.shape[-2]:
        raise RuntimeError(
            f"{name}: {argument} must be a square matrix or a batch of them, got shape "
            f"{list(array.shape)}"
        )
    return array


def _lapack(name: str, problem: str, function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function of numpy.linalg; its error becomes LinAlgError saying `problem`."""
    try:
        with np.errstate(all="ignore"):
            return function(*args)
    except np.linalg.LinAlgError as error:
        raise LinAlgError(f"{name}: {problem} ({error})") from None


_SINGULAR = "the matrix is singular"
_DIVERGED = "the iteration did not converge; has the input NaN or infinite elements?"


def _t(x: Tensor) -> Tensor:
    return transpose(x, -2, -1)


def _constant(value: Any, like: Tensor) -> Tensor:
    result: Tensor = wrap(like_array(np.asarray(value, like.array.dtype), like.array))
    return result


def _product(*factors: Tensor) -> Tensor:
    result = factors[0]
    for factor in factors[1:]:
        result = matmul(result, factor)
    return result


def _column(x: Tensor) -> Tensor:
    return unsqueeze(x, -1)


def _row(x: Tensor) -> Tensor:
    return unsqueeze(x, -2)


def _gaps(values: Tensor) -> Tensor:
    """values_j - values_i, and 1 on the diagonal."""
    n = values.array.shape[-1]
    return add(sub(_row(values), _column(values)), _constant(np.eye(n), values))


def _zero_diagonal(x: Tensor) -> Tensor:
    n = x.array.shape[-1]
    return mul(x, _constant(1 - np.eye(n), x))


def _again(function: Callable[[Tensor], Any], input: Tensor, factors: Sequence[Tensor]) -> Any:
    """The factors of `input` for a backward pass: recomputed with history if that is recorded."""
    return function(input) if grad_enabled() else factors


# ---- inverse, determinants, equations ----


class Inv(Node):
    """With Y = X^-1: -Y^T G Y^T."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        y = _t(self.saved[0])
        return neg(_product(y, grad, y))


@full_precision
@through_host
def inv(A: Tensor) -> Tensor:
    """The inverse of a square matrix [..., n, n]. LinAlgError if it is singular."""
    x = _square("inv", "A", A)
    y = _lapack("inv", _SINGULAR, np.linalg.inv, x)
    return record(Inv, y, (A,), (y,))


class Det(Node):
    """d det / dX = det(X) X^-T, the matrix of cofactors."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, y = self.saved
        return mul(reshape(grad, (*grad.array.shape, 1, 1)), _cofactors(x, y))


def _cofactors(x: Tensor, determinant: Tensor) -> Tensor:
    if np.all(determinant.array != 0):
        return mul(_column(_column(determinant)), _t(inv(x)))
    # Singular: X = U S V^T has cofactors det(U) det(V) U diag(products of the other s) V^T.
    u, s, vh = linalg_svd(x, full_matrices=False)
    n = s.array.shape[-1]
    eye = _constant(np.eye(n), s)
    others = add(mul(_row(s), neg(sub(eye, 1))), eye).prod(-1)
    orientation = np.linalg.det(u.array) * np.linalg.det(vh.array)
    return mul(_column(_column(_constant(orientation, s))), matmul(mul(u, _row(others)), vh))


@method
@through_host
def det(A: Tensor) -> Tensor:
    """The determinant of a square matrix [..., n, n]; shape [...]."""
    x = _square("det", "A", A)
    y = np.asarray(_lapack("det", _SINGULAR, np.linalg.det, x), x.dtype)
    return record(Det, y, (A,), (A, y))


class SLogDet(NamedTuple):
    """det = sign * exp(logabsdet)."""

    sign: Tensor
    logabsdet: Tensor


class SLogDetNode(Node):
    """d log|det X| / dX = X^-T; the sign is constant."""

    __slots__ = ()

    def backward(self, _: Tensor | None, grad: Tensor | None) -> Any:
        if grad is None:
            return None
        return mul(_column(_column(grad)), _t(inv(self.saved[0])))


@method
@through_host
def slogdet(A: Tensor) -> SLogDet:
    """Sign and logarithm of the absolute determinant: (sign, logabsdet), each [...]."""
    x = _square("slogdet", "A", A)
    results = _lapack("slogdet", _SINGULAR, np.linalg.slogdet, x)
    arrays = [np.asarray(r, x.dtype) for r in results]
    return SLogDet(*record_many(SLogDetNode, arrays, (A,), (A,)))


@method
@through_host
def logdet(input: Tensor) -> Tensor:
    """log(det(input)); NaN where the determinant is negative."""
    orientation, logabsdet = slogdet(input)
    bad = wrap(orientation.array < 0)
    result: Tensor = where(bad, _constant(math.nan, input), logabsdet)
    return result


class Solve(Node):
    """With A X = B: G_B = A^-T G and G_A = -G_B X^T."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        a, x, shape = self.saved
        to_a, to_b = self.edges
        grad_b = _solve(_t(a), grad)
        return (
            None if to_a is None else unbroadcast(neg(matmul(grad_b, _t(x))), a.array.shape),
            None if to_b is None else unbroadcast(grad_b, shape),
        )


def _solve(a: Tensor, b: Tensor) -> Tensor:
    y = _lapack("solve", _SINGULAR, np.linalg.solve, a.array, b.array)
    return record(Solve, y, (a, b), (a, y, b.array.shape))


def _check_pair(name: str, a: Array, b: Array) -> None:
    if a.dtype != b.dtype:
        raise RuntimeError(f"{name}: A has dtype {a.dtype} but B has {b.dtype}")


@full_precision
@through_host
def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """X with A X = B (left=False: X A = B). A: [..., n, n]; B: [..., n, k], or vectors [..., n].

    LinAlgError if A is singular, RuntimeError for shapes that don't fit.
    """
    a, b = _square("solve", "A", A), expect_float("solve", "B", B)
    _check_pair("solve", a, b)
    vector = b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
    right = _column(B) if vector else B
    if not left:
        right = _t(right)
    rows, lead = right.array.shape[-2:-1], right.array.shape[:-2]
    if rows != a.shape[-1:] or not _broadcastable(lead, a.shape[:-2]):
        raise RuntimeError(
            f"solve: B of shape {list(b.shape)} does not fit A of shape {list(a.shape)}"
        )
    x = _solve(A if left else _t(A), right)
    if not left:
        x = _t(x)
    return x.squeeze(-1) if vector else x


def _broadcastable(*shapes: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


@through_host
def solve_triangular(
    A: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """`solve` with the upper or lower triangle of A; unitriangular: ones on its diagonal."""
    x = _square("solve_triangular", "A", A)
    _matrix("solve_triangular", "B", B)
    keep = triu if upper else tril
    triangle = keep(A)
    if unitriangular:
        triangle = add(keep(A, 1 if upper else -1), _constant(np.eye(x.shape[-1]), A))
    return solve(triangle, B, left=left)


class Cholesky(Node):
    """With P = lower triangle of L^T G, diagonal halved: G_A = L^-T (P + P^T) / 2 L^-1."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        lower = self.saved[0]
        half = _constant(np.tri(lower.array.shape[-1]) - np.eye(lower.array.shape[-1]) / 2, lower)
        p = mul(matmul(_t(lower), grad), half)
        inner = mul(add(p, _t(p)), 0.5)
        inverse_lower = inv(lower)
        return _product(_t(inverse_lower), inner, inverse_lower)


@method
@full_precision
@through_host
def cholesky(A: Tensor, *, upper: bool = False) -> Tensor:
    """Lower triangular L with A = L L^T (upper=True: L^T). Reads the lower triangle of A only.

    LinAlgError if A is not positive definite.
    """
    x = _square("cholesky", "A", A)
    y = _lapack("cholesky", "the matrix is not positive definite", np.linalg.cholesky, x)
    result: Tensor = record(Cholesky, y, (A,), (y,))
    return _t(result) if upper else result


# ---- factorisations ----


class QR(NamedTuple):
    """A = Q R."""

    Q: Tensor
    R: Tensor


class QRNode(Node):
    __slots__ = ()

    def backward(self, grad_q: Tensor | None, grad_r: Tensor | None) -> Any:
        a, *factors = self.saved
        q, r = _again(qr, a, factors)
        m, n = a.array.shape[-2:]
        grad_q = _constant(np.zeros(q.array.shape), q) if grad_q is None else grad_q
        grad_r = _constant(np.zeros(r.array.shape), r) if grad_r is None else grad_r
        if m >= n:
            return _qr_gradient(q, r, grad_q, grad_r)
        # A = [X Y] with X = Q U square and Y = Q V: Q's gradient collects what comes through V.
        y, u = narrow(a, -1, m, n - m), narrow(r, -1, 0, m)
        grad_u, grad_v = narrow(grad_r, -1, 0, m), narrow(grad_r, -1, m, n - m)
        grad_x = _qr_gradient(q, u, add(grad_q, matmul(y, _t(grad_v))), grad_u)
        return cat([grad_x, matmul(q, grad_v)], -1)


def _qr_gradient(q: Tensor, r: Tensor, grad_q: Tensor, grad_r: Tensor) -> Tensor:
    """With M = R G_R^T - G_Q^T Q, its lower triangle mirrored: (G_Q + Q M) R^-T."""
    m = sub(matmul(r, _t(grad_r)), matmul(_t(grad_q), q))
    mirrored = add(tril(m), _t(tril(m, -1)))
    return _t(_solve(r, _t(add(grad_q, matmul(q, mirrored)))))


@method
@full_precision
@through_host
def qr(A: Tensor, mode: str = "reduced") -> QR:
    """Orthonormal columns Q and upper triangular R with A = Q R: (Q, R).

    A: [..., m, n]. mode: "reduced": Q [..., m, k], R [..., k, n] with k = min(m, n); "complete": Q
    [..., m, m], R [..., m, n]; "r": an empty Q. Differentiable for "reduced" (and square A).
    """
    x = _matrix("qr", "A", A)
    if mode not in ("reduced", "complete", "r"):
        raise RuntimeError(f"qr: mode must be 'reduced', 'complete' or 'r', got {mode!r}")
    if mode == "r":
        r = _lapack("qr", _DIVERGED, np.linalg.qr, x, "r")
        arrays = (np.zeros(0, x.dtype), r)
    else:
        arrays = tuple(_lapack("qr", _DIVERGED, np.linalg.qr, x, mode))
    smooth = mode == "reduced" or (mode == "complete" and x.shape[-2] <= x.shape[-1])
    node = QRNode if smooth else NoGradient
    saved = (A, *arrays) if smooth else (f"qr with mode={mode!r}",)
    return QR(*record_many(node, arrays, (A,), saved))


class NoGradient(Node):
    """A result that can't be differentiated."""

    __slots__ = ()

    def backward(self, *_: Any) -> Any:
        raise RuntimeError(f"{self.saved[0]} is not differentiable for this input")


class SVD(NamedTuple):
    """A = U diag(S) Vh."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class SVDNode(Node):
    """U ([skew(U^T G_U) / E] S + S [skew(V^T G_V) / E] + diag(G_S)) V^T, E_ij = s_j^2 - s_i^2.

    And for U or V that are not square, what their gradients have outside of the space they span.
    """

    __slots__ = ()

    def backward(self, grad_u: Tensor | None, grad_s: Tensor | None, grad_vh: Tensor | None) -> Any:
        a, full, *factors = self.saved
        m, n = a.array.shape[-2:]
        if full and m != n and (grad_u is not None or grad_vh is not None):
            raise RuntimeError("svd: with full_matrices=True only S is differentiable unless m = n")
        if full:
            k = min(m, n)
            u, s, vh = factors
            factors = [u[..., :k], s, vh[..., :k, :]]
        u, s, vh = _again(lambda x: linalg_svd(x, full_matrices=False), a, factors)
        return _svd_gradient(u, s, vh, grad_u, grad_s, grad_vh)


def _skew(x: Tensor) -> Tensor:
    return sub(x, _t(x))


def _svd_gradient(
    u: Tensor, s: Tensor, vh: Tensor, grad_u: Tensor | None, grad_s: Tensor | None,
    grad_vh: Tensor | None,
) -> Tensor:  # fmt: skip
    gaps = _gaps(mul(s, s))
    inner = diag_embed(_constant(np.zeros(s.array.shape), s) if grad_s is None else grad_s)
    outside = None
    if grad_u is not None:
        inside = matmul(_t(u), grad_u)
        inner = add(inner, mul(div(_skew(inside), gaps), _row(s)))
        if u.array.shape[-2] > u.array.shape[-1]:
            rest = div(sub(grad_u, matmul(u, inside)), _row(s))
            outside = matmul(rest, vh)
    if grad_vh is not None:
        inside = matmul(vh, _t(grad_vh))
        inner = add(inner, mul(_column(s), div(_skew(inside), gaps)))
        if vh.array.shape[-1] > vh.array.shape[-2]:
            rest = div(sub(grad_vh, matmul(_t(inside), vh)), _column(s))
            part = matmul(u, rest)
            outside = part if outside is None else add(outside, part)
    result = _product(u, inner, vh)
    return result if outside is None else add(result, outside)


@full_precision
@through_host
def linalg_svd(A: Tensor, full_matrices: bool = True) -> SVD:
    """Singular value decomposition A = U diag(S) Vh: (U, S, Vh), S descending.

    A: [..., m, n], k = min(m, n); U [..., m, m], Vh [..., n, n], or with full_matrices=False U
    [..., m, k], Vh [..., k, n]. The gradients of U and Vh need distinct singular values.
    """
    x = _matrix("svd", "A", A)
    results = _lapack("svd", _DIVERGED, np.linalg.svd, x, full_matrices)
    arrays = tuple(np.asarray(r) for r in results)
    return SVD(*record_many(SVDNode, arrays, (A,), (A, full_matrices, *arrays)))


@full_precision
def svdvals(A: Tensor) -> Tensor:
    """The singular values of A, descending; [..., min(m, n)]."""
    return linalg_svd(A, full_matrices=False).S


class SVDWithV(NamedTuple):
    """A = U diag(S) V^T."""

    U: Tensor
    S: Tensor
    V: Tensor


@method
@full_precision
def svd(input: Tensor, some: bool = True) -> SVDWithV:
    """`grebe.linalg.svd` in its older form: (U, S, V) with V not transposed, reduced by default."""
    u, s, vh = linalg_svd(input, full_matrices=not some)
    return SVDWithV(u, s, _t(vh))


class Eigen(NamedTuple):
    """Eigenvalues, and eigenvectors in columns."""

    eigenvalues: Tensor
    eigenvectors: Tensor


class EighNode(Node):
    """V (diag(G_L) + (V^T G_V) / E) V^T with E_ij = l_j - l_i."""

    __slots__ = ()

    def backward(self, grad_values: Tensor | None, grad_vectors: Tensor | None) -> Any:
        a, triangle, *factors = self.saved
        values, vectors = _again(lambda x: eigh(x, triangle), a, factors)
        inner = _diagonal_or_zero(grad_values, values)
        if grad_vectors is not None:
            inside = _zero_diagonal(matmul(_t(vectors), grad_vectors))
            inner = add(inner, div(inside, _gaps(values)))
        return _product(vectors, inner, _t(vectors))


def _diagonal_or_zero(grad: Tensor | None, like: Tensor) -> Tensor:
    return diag_embed(_constant(np.zeros(like.array.shape), like) if grad is None else grad)


@full_precision
@through_host
def eigh(A: Tensor, UPLO: str = "L") -> Eigen:
    """Eigenvalues (ascending) and eigenvectors of a symmetric matrix: (eigenvalues, eigenvectors).

    A: [..., n, n], of which only the lower (UPLO="L") or upper ("U") triangle is read. The gradient
    of the eigenvectors needs distinct eigenvalues.
    """
    x = _square("eigh", "A", A)
    if UPLO not in ("L", "U"):
        raise RuntimeError(f"eigh: UPLO must be 'L' or 'U', got {UPLO!r}")
    results = _lapack("eigh", _DIVERGED, np.linalg.eigh, x, UPLO)
    arrays = tuple(np.asarray(r) for r in results)
    return Eigen(*record_many(EighNode, arrays, (A,), (A, UPLO, *arrays)))


@full_precision
def eigvalsh(A: Tensor, UPLO: str = "L") -> Tensor:
    """The eigenvalues of a symmetric matrix, ascending; see `eigh`."""
    return eigh(A, UPLO).eigenvalues


class EigNode(Node):
    """V^-T (diag(G_L) + (V^T G_V - V^T V diag(V^T G_V)) / E) V^T with E_ij = l_j - l_i."""

    __slots__ = ()

    def backward(self, grad_values: Tensor | None, grad_vectors: Tensor | None) -> Any:
        a, *factors = self.saved
        values, vectors = _again(eig, a, factors)
        inner = _diagonal_or_zero(grad_values, values)
        transposed = _t(vectors)
        if grad_vectors is not None:
            inside = matmul(transposed, grad_vectors)
            # Unit columns: what a gradient has along them does not count.
            along = mul(matmul(transposed, vectors), _row(diagonal(inside, 0, -2, -1)))
            inner = add(inner, div(_zero_diagonal(sub(inside, along)), _gaps(values)))
        return _solve(transposed, matmul(inner, transposed))


@full_precision
@through_host
def eig(A: Tensor) -> Eigen:
    """Eigenvalues and unit eigenvectors of a square matrix whose eigenvalues are real.

    There are no complex tensors: NotImplementedError for a matrix with complex eigenvalues. The
    results are real where PyTorch's are complex with zero imaginary parts.
    """
    x = _square("eig", "A", A)
    if not np.isfinite(x).all():
        raise LinAlgError("eig: A has NaN or infinite elements")
    values, vectors = _lapack("eig", _DIVERGED, np.linalg.eig, x)
    if np.iscomplexobj(values) and values.imag.any():
        raise NotImplementedError(
            "eig: the matrix has complex eigenvalues, and complex tensors are not supported; "
            "use eigh for symmetric matrices, or numpy.linalg.eig on A.numpy()"
        )
    # From NumPy 2.5 on the results are always complex.
    values, vectors = np.ascontiguousarray(values.real), np.ascontiguousarray(vectors.real)
    return Eigen(*record_many(EigNode, (values, vectors), (A,), (A, values, vectors)))


@full_precision
def eigvals(A: Tensor) -> Tensor:
    """The eigenvalues of a square matrix, if they are real; see `eig`."""
    return eig(A).eigenvalues


# ---- pseudo-inverse and what follows ----


class PInv(Node):
    """Golub and Pereyra 1973, for constant rank."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        a, p = self.saved
        pt, gt = _t(p), _t(grad)
        if a.array.shape[-2] <= a.array.shape[-1]:
            k = matmul(gt, p)
            kp = matmul(k, pt)
            first = sub(kp, _t(matmul(p, k)))
            second = sub(_product(pt, p, sub(gt, matmul(k, a))), _product(a, p, kp))
            return add(first, second)
        k = matmul(p, gt)
        pk = matmul(pt, k)
        first = sub(pk, _t(matmul(k, p)))
        second = sub(_product(sub(gt, matmul(a, k)), p, pt), _product(pk, p, a))
        return add(first, second)


def _tolerance(name: str, x: Array, s: Array, atol: Any, rtol: Any) -> Array:
    """Below which a singular value counts as 0: max(atol, rtol * largest)."""
    absolute, relative = (
        None if v is None else np.asarray(v.array if isinstance(v, TensorBase) else v, x.dtype)
        for v in (atol, rtol)
    )
    if relative is None:
        set_by_user = absolute is not None and bool((absolute > 0).all())
        default = 0.0 if set_by_user else max(x.shape[-2:]) * float(np.finfo(x.dtype).eps)
        relative = np.asarray(default, x.dtype)
    largest = s.max(axis=-1, initial=0)
    return np.asarray(np.maximum(0 if absolute is None else absolute, relative * largest))


@through_host
def pinv(A: Tensor, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Tensor:
    """The pseudo-inverse [..., n, m] of a matrix [..., m, n].

    Singular values up to max(atol, rtol * largest) count as 0; rtol: by default max(m, n) * eps.
    hermitian: A is symmetric, of which only the lower triangle is read.
    """
    x = _square("pinv", "A", A) if hermitian else _matrix("pinv", "A", A)
    if hermitian:
        x = np.tril(x) + np.swapaxes(np.tril(x, -1), -1, -2)
    u, s, vh = _lapack("pinv", _DIVERGED, np.linalg.svd, x, False)
    keep = s > _tolerance("pinv", x, s, atol, rtol)[..., None]
    inverted = np.where(keep, 1 / np.where(keep, s, 1), 0).astype(x.dtype)
    y = np.swapaxes((u * inverted[..., None, :]) @ vh, -1, -2).copy()
    return record(PInv, y, (A,), (A, y))


def pinverse(input: Tensor, rcond: float = 1e-15) -> Tensor:
    """`grebe.linalg.pinv` with rtol=rcond."""
    return pinv(input, rtol=rcond)


@full_precision
@through_host
def matrix_rank(
    A: Tensor, *, tol: Any = None, atol: Any = None, rtol: Any = None, hermitian: bool = False
) -> Tensor:
    """The number of singular values above max(atol, rtol * largest); int64. tol: an older atol."""
    x = _square("matrix_rank", "A", A) if hermitian else _matrix("matrix_rank", "A", A)
    if tol is not None:
        atol, rtol = tol, 0.0
    s = _lapack("matrix_rank", _DIVERGED, lambda a: np.linalg.svd(a, compute_uv=False), x)
    bound = _tolerance("matrix_rank", x, s, atol, rtol)
    return wrap(np.asarray((s > bound[..., None]).sum(axis=-1), np.int64))


class LeastSquares(NamedTuple):
    """Result of `lstsq`."""

    solution: Tensor
    residuals: Tensor
    rank: Tensor
    singular_values: Tensor


@full_precision
@through_host
def lstsq(A: Tensor, B: Tensor, rcond: Any = None, *, driver: str | None = None) -> LeastSquares:
    """X that minimises |A X - B|: (solution, residuals, rank, singular_values).

    A: [..., m, n]; B: [..., m, k] or [..., m]. residuals: squared, per column, empty unless m > n
    and A has full rank. rcond: see `pinv`'s rtol. driver: accepted for PyTorch's sake; the solution
    always comes from the SVD.
    """
    a, b = _matrix("lstsq", "A", A), expect_float("lstsq", "B", B)
    _check_pair("lstsq", a, b)
    if driver not in (None, "gels", "gelsy", "gelsd", "gelss"):
        raise RuntimeError(f"lstsq: driver must be gels, gelsy, gelsd or gelss, got {driver!r}")
    vector = b.ndim == a.ndim - 1
    right = _column(B) if vector else B
    rows, lead = right.array.shape[-2:-1], right.array.shape[:-2]
    if rows != a.shape[-2:-1] or not _broadcastable(lead, a.shape[:-2]):
        raise RuntimeError(
            f"lstsq: B of shape {list(b.shape)} does not fit A of shape {list(a.shape)}"
        )
    x = matmul(pinv(A, rtol=rcond), right)
    rank = matrix_rank(A.detach(), rtol=rcond)
    residuals = _constant(np.zeros(0), A)
    if a.shape[-2] > a.shape[-1] and (rank.array == a.shape[-1]).all():
        error = sub(matmul(A, x), right)
        residuals = sum(mul(error, error), -2)
        if vector:
            residuals = residuals.squeeze(-1)
    solution = x.squeeze(-1) if vector else x
    return LeastSquares(solution, residuals, rank, svdvals(A.detach()))


@method
def matrix_power(A: Tensor, n: int) -> Tensor:
    """A multiplied with itself n times by repeated squaring; of the inverse for negative n."""
    x = _square("matrix_power", "A", A)
    exponent = operator.index(n)
    if exponent == 0:
        return _constant(np.broadcast_to(np.eye(x.shape[-1]), x.shape).copy(), A)
    base, result = inv(A) if exponent < 0 else A, None
    exponent = -exponent if exponent < 0 else exponent
    while exponent:
        if exponent & 1:
            result = base if result is None else matmul(result, base)
        exponent >>= 1
        if exponent:
            base = matmul(base, base)
    assert result is not None
    return result.clone() if result is A else result


def multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """The product of matrices in the order of least work; first and last may be vectors.

    Raises RuntimeError for fewer than two or shapes that don't fit.
    """
    factors = list(tensors)
    if len(factors) < 2:
        raise RuntimeError(f"multi_dot: expected at least 2 tensors, got {len(factors)}")
    for index, factor in enumerate(factors):
        ndim = expect_tensor("multi_dot", f"tensors[{index}]", factor).ndim
        allowed = (1, 2) if index in (0, len(factors) - 1) else (2,)
        if ndim not in allowed:
            raise RuntimeError(f"multi_dot: tensors[{index}] has {ndim} dimensions, expected 2")
    ends = [f.array.ndim == 1 for f in (factors[0], factors[-1])]
    if ends[0]:
        factors[0] = _row(factors[0])
    if ends[1]:
        factors[-1] = _column(factors[-1])
    for left, right in itertools.pairwise(factors):
        if left.array.shape[1] != right.array.shape[0]:
            raise RuntimeError(
                f"multi_dot: shapes {list(left.array.shape)} and {list(right.array.shape)} "
                "can't be multiplied"
            )
    y = _in_best_order(factors)
    shape = y.array.shape[ends[0] : 2 - ends[1]]
    return reshape(y, shape) if any(ends) else y


def _in_best_order(factors: list[Tensor]) -> Tensor:
    """Matrix-chain order by dynamic programming (Cormen et al., section 14.2)."""
    sizes = [f.array.shape[0] for f in factors] + [factors[-1].array.shape[1]]
    n = len(factors)
    cost = [[0] * n for _ in range(n)]
    cut = [[0] * n for _ in range(n)]
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            cost[i][j], cut[i][j] = min(
                (cost[i][k] + cost[k + 1][j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k)
                for k in range(i, j)
            )

    def product(i: int, j: int) -> Tensor:
        if i == j:
            return factors[i]
        return matmul(product(i, cut[i][j]), product(cut[i][j] + 1, j))

    return product(0, n - 1)


def chain_matmul(*matrices: Tensor) -> Tensor:
    """`grebe.linalg.multi_dot` of its arguments."""
    return multi_dot(matrices)


# ---- norms ----


class EuclideanNorm(Node):
    """d |x| / dx = x / |x|, and 0 at 0."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, y = self.saved
        safe = where(eq(y, 0), _constant(1, y), y)
        return mul(x, div(reshape(grad, y.array.shape), safe))


def _euclidean(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The 2-norm over `dims`, which are kept with size 1."""
    y = sqrt(wrap(reduced_float("reduce_sum_squares", x.array, dims, 1.0))).array
    return record(EuclideanNorm, y, (x,), (x, y))


def vector_norm(
    x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """(sum |x|^ord)^(1/ord) over `dim` (default: all elements).

    ord: inf and -inf give the largest and smallest |x|, 0 counts nonzero elements. Raises TypeError
    for integers and RuntimeError for an extremum of nothing.
    """
    array = expect_tensor("vector_norm", "x", x)
    if not is_floating(array.dtype):
        raise TypeError(f"vector_norm: x must be floating point, got {array.dtype}")
    if dtype is not None:
        x = x.to(as_dtype("vector_norm", dtype))
    if not isinstance(ord, (int, float)):
        raise TypeError(f"vector_norm: ord must be a number, got {ord!r}")
    shape = array.shape
    dims = tuple(range(len(shape))) if dim is None else dimensions("vector_norm", dim, len(shape))
    if ord in (math.inf, -math.inf) and math.prod(shape[d] for d in dims if shape) == 0:
        raise RuntimeError(f"vector_norm: ord={ord} of no elements, shape {list(shape)}")
    if not shape:
        dims = ()
    y = _norm_over(x, float(ord), dims)
    if keepdim or not dims:
        return y
    return reshape(y, tuple(s for d, s in enumerate(shape) if d not in dims))


def _norm_over(x: Tensor, order: float, dims: tuple[int, ...]) -> Tensor:
    def total(terms: Tensor) -> Tensor:
        return sum(terms, dims, True) if dims else terms

    if order == 2:
        return _euclidean(x, dims)
    if order == 0:
        return total(where(eq(x, 0), _constant(0, x), _constant(1, x)))
    size = abs(x)
    if order == math.inf:
        return amax(size, dims, True) if dims else size
    if order == -math.inf:
        return amin(size, dims, True) if dims else size
    if order == 1:
        return total(size)
    # At 0 the inner power has an infinite slope below 1 and the outer one always: keep them out.
    zero = eq(size, 0)
    safe = where(zero, _constant(1, x), size) if order < 2 else size
    powers = where(zero, _constant(0 if order > 0 else math.inf, x), pow(safe, order))
    sums = total(powers)
    empty = eq(sums, 0) if order > 0 else wrap(np.isinf(sums.array))
    root = pow(where(empty, _constant(1, x), sums), 1 / order)
    result: Tensor = where(empty, _constant(0, x), root)
    return result


_MATRIX_ORDERS = ("fro", "nuc", math.inf, -math.inf, 1, -1, 2, -2)


def matrix_norm(
    A: Tensor, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """A norm of the matrices in two dimensions.

    ord: "fro" (root of the sum of squares), "nuc" (sum of singular values), 2 and -2 (largest,
    smallest singular value), 1 and -1 (largest, smallest column sum of |A|), inf and -inf (rows).
    """
    x = _matrix("matrix_norm", "A", A)
    if ord not in _MATRIX_ORDERS:
        raise RuntimeError(f"matrix_norm: ord must be one of {_MATRIX_ORDERS}, got {ord!r}")
    dims = dimensions("matrix_norm", dim, x.ndim)
    if len(dims) != 2:
        raise RuntimeError(f"matrix_norm: dim must name 2 dimensions, got {dim!r}")
    if dtype is not None:
        A = A.to(as_dtype("matrix_norm", dtype))
    y = _matrix_norm(movedim(A, dims, (-2, -1)), ord)
    return y.unsqueeze(min(dims)).unsqueeze(max(dims)) if keepdim else y


def _matrix_norm(a: Tensor, order: Any) -> Tensor:
    if order == "fro":
        return vector_norm(a, 2, (-2, -1))
    if order in ("nuc", 2, -2):
        s = svdvals(a)
        if order == "nuc":
            return sum(s, -1)
        if s.array.shape[-1] == 0:
            raise RuntimeError(f"matrix_norm: ord={order} of an empty matrix")
        return select(s, -1, 0 if order == 2 else -1)
    totals = sum(abs(a), -2 if order in (1, -1) else -1)
    if totals.array.shape[-1] == 0:
        raise RuntimeError(f"matrix_norm: ord={order} of an empty matrix")
    return amax(totals, -1) if order > 0 else amin(totals, -1)


def linalg_norm(
    A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """A vector or matrix norm: ord None is the 2-norm of all elements.

    With `ord`, one dimension (or a vector) means `vector_norm`, two (or a matrix) `matrix_norm`.
    """
    ndim = expect_tensor("norm", "A", A).ndim
    dims: Any = (-2, -1) if dim is None else dim
    count = ndim if dim is None else 1 if isinstance(dim, int) else len(dim)
    if ord is None:
        return vector_norm(A, 2, dim, keepdim, dtype=dtype)
    if isinstance(ord, str) or count == 2:
        return matrix_norm(A, ord, dims, keepdim, dtype=dtype)
    if count > 2:
        raise RuntimeError(f"norm: with ord={ord!r}, expected 1 or 2 dimensions, got {count}")
    return vector_norm(A, ord, dim, keepdim, dtype=dtype)


@method
def norm(
    input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """The p-norm of all elements or over `dim`; "fro" is p = 2, "nuc" the matrix norm."""
    if p == "nuc":
        return matrix_norm(input, "nuc", (-2, -1) if dim is None else dim, keepdim, dtype=dtype)
    if isinstance(p, str) and p != "fro":
        raise RuntimeError(f"norm: p must be a number, 'fro' or 'nuc', got {p!r}")
    order = 2 if p is None or p == "fro" else p
    return vector_norm(input, order, dim, keepdim, dtype=dtype)


@full_precision
def cond(A: Tensor, p: Any = None) -> Tensor:
    """The condition number |A| |A^-1| in the norm `p` of `matrix_norm`; None is 2, of any shape."""
    _matrix("cond", "A", A)
    if p in (None, 2, -2):
        s = svdvals(A)
        if s.array.shape[-1] == 0:
            raise RuntimeError("cond: of an empty matrix")
        largest, smallest = s.select(-1, 0), s.select(-1, -1)
        return div(smallest, largest) if p == -2 else div(largest, smallest)
    _square("cond", "A", A)
    return mul(matrix_norm(A, p), matrix_norm(inv(A), p))


# ---- products and distances ----


@method
@full_precision
def trace(input: Tensor) -> Tensor:
    """The sum of the diagonal of a matrix."""
    x = expect_tensor("trace", "input", input)
    if x.ndim != 2:
        raise RuntimeError(f"trace: input must have 2 dimensions, got {x.ndim}")
    return sum(diagonal(input))


def linalg_cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    """The cross product of vectors of length 3 along `dim`, broadcast."""
    a = expect_tensor("cross", "input", input)
    b = expect_tensor("cross", "other", other)
    if a.ndim != b.ndim or not _broadcastable(a.shape, b.shape):
        raise RuntimeError(
            f"cross: shapes {list(a.shape)} and {list(b.shape)} don't fit: expected as many "
            "dimensions, of equal size or 1"
        )
    at = dimension("cross", dim, a.ndim)
    if a.ndim == 0 or a.shape[at] != 3 or b.shape[at] != 3:
        raise RuntimeError(
            f"cross: expected size 3 in dimension {dim}, got {list(a.shape)} and {list(b.shape)}"
        )
    after, before = (wrap(like_array(np.array(i), a)) for i in ([1, 2, 0], [2, 0, 1]))
    return sub(
        mul(index_select(input, at, after), index_select(other, at, before)),
        mul(index_select(input, at, before), index_select(other, at, after)),
    )


@method
def cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """The cross product along `dim`, by default the first dimension of size 3."""
    if dim is None:
        shape = expect_tensor("cross", "input", input).shape
        if 3 not in shape:
            raise RuntimeError(f"cross: no dimension of size 3 in {list(shape)}")
        dim = shape.index(3)
    return linalg_cross(input, other, dim=dim)


@method
def kron(input: Tensor, other: Tensor) -> Tensor:
    """The Kronecker product: blocks input[i, j] * other."""
    a, b = expect_tensor("kron", "input", input), expect_tensor("kron", "other", other)
    ndim = max(a.ndim, b.ndim)
    left, right = ((1,) * (ndim - x.ndim) + x.shape for x in (a, b))
    wide = reshape(input, tuple(s for size in left for s in (size, 1)))
    fine = reshape(other, tuple(s for size in right for s in (1, size)))
    return reshape(mul(wide, fine), tuple(m * n for m, n in zip(left, right, strict=True)))


@method
def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    """The p-norm of input - other, broadcast."""
    expect_float("dist", "input", input)
    expect_float("dist", "other", other)
    return vector_norm(sub(input, other), p)


class Distance(Node):
    """With W = G / d: the gradients are rowsum(W) x1 - W x2 and colsum(W) x2 - W^T x1."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        a, b, d = self.saved
        touching = eq(d, 0)
        zero, one = _constant(0, d), _constant(1, d)
        w = where(touching, zero, div(grad, where(touching, one, d)))
        grad_a = sub(mul(_column(sum(w, -1)), a), matmul(w, b))
        grad_b = sub(mul(_column(sum(w, -2)), b), matmul(_t(w), a))
        return unbroadcast(grad_a, a.array.shape), unbroadcast(grad_b, b.array.shape)


_BY_PRODUCT_FROM = 25  # rows, as in PyTorch's "if_necessary"
_DISTANCE_MODES = (
    "use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist",
    "donot_use_mm_for_euclid_dist",
)  # fmt: skip


@full_precision
def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = _DISTANCE_MODES[0]) -> Tensor:
    """The p-norm distances of all pairs of rows: [..., n, d] and [..., m, d] give [..., n, m].

    compute_mode: Euclidean distances of more than 25 rows come by default from
    |a|^2 + |b|^2 - 2 ab, fast but with fewer digits for close rows; not so with
    "donot_use_mm_for_euclid_dist".
    """
    a, b = _matrix("cdist", "x1", x1), _matrix("cdist", "x2", x2)
    if a.shape[-1] != b.shape[-1] or not _broadcastable(a.shape[:-2], b.shape[:-2]):
        raise RuntimeError(
            f"cdist: shapes {list(a.shape)} and {list(b.shape)} don't fit: expected [..., n, d] "
            "and [..., m, d]"
        )
    if a.dtype != b.dtype:
        raise RuntimeError(f"cdist: x1 has dtype {a.dtype} but x2 has {b.dtype}")
    if p < 0:
        raise RuntimeError(f"cdist: p must not be negative, got {p}")
    if compute_mode not in _DISTANCE_MODES:
        raise ValueError(f"cdist: compute_mode must be one of {_DISTANCE_MODES}")
    many = max(a.shape[-2], b.shape[-2]) > _BY_PRODUCT_FROM and compute_mode == _DISTANCE_MODES[0]
    if p == 2 and (many or compute_mode == _DISTANCE_MODES[1]):
        return _distances_by_product(x1, x2)
    difference = sub(unsqueeze(x1, -2), unsqueeze(x2, -3))
    if difference.array.shape[-1] == 0:
        return sum(difference, -1)
    return vector_norm(difference, p, -1)


def _distances_by_product(x1: Tensor, x2: Tensor) -> Tensor:
    a, b = x1.array, x2.array
    squares = np.square(a).sum(-1)[..., :, None] + np.square(b).sum(-1)[..., None, :]
    squares = squares - 2 * matmul(x1.detach(), _t(x2.detach())).array
    d = np.sqrt(np.maximum(squares, 0))
    return record(Distance, d, (x1, x2), (x1, x2, d))


inverse = inv
Tensor.inverse, Tensor.pinverse = inv, pinverse  # type: ignore[attr-defined]
