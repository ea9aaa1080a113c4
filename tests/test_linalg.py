"""Linear algebra."""

import math

import numpy as np
import pytest

import grebe
from grebe import linalg
from grebe.autograd import gradcheck, gradgradcheck

INF = math.inf


def leaf(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return grebe.tensor(values, dtype=grebe.float64, requires_grad=True)


def invertible(*shape, seed=0):
    """Well-conditioned square matrices with distinct singular values."""
    values = np.random.default_rng(seed).standard_normal(shape) + 3 * np.eye(shape[-1])
    return grebe.tensor(values, dtype=grebe.float64, requires_grad=True)


def check_twice(function, *inputs):
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs, atol=1e-4)


def symmetric(x):
    return (x + x.mT) / 2


def positive(x):
    return x @ x.mT + grebe.eye(x.shape[-1], dtype=x.dtype)


# ---- inverse, determinants, equations ----


def test_inv():
    a = invertible(2, 3, 3)
    np.testing.assert_allclose((a @ linalg.inv(a)).detach().numpy(), [np.eye(3)] * 2, atol=1e-12)
    assert grebe.equal(a.inverse(), grebe.inverse(a))
    check_twice(linalg.inv, a)


def test_det():
    a = invertible(2, 3, 3)
    np.testing.assert_allclose(a.det().detach().numpy(), np.linalg.det(a.detach().numpy()))
    check_twice(linalg.det, a)


def test_det_of_singular_matrix():
    a = grebe.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 0.0, 2.0]], dtype=grebe.float64)
    a.requires_grad_()
    cofactors = [[8.0, 2.0, -4.0], [-4.0, -1.0, 2.0], [0.0, 0.0, 0.0]]
    (gradient,) = grebe.autograd.grad(linalg.det(a), a)
    np.testing.assert_allclose(gradient.numpy(), cofactors, atol=1e-12)


def test_slogdet_and_logdet():
    a = invertible(3, 3)
    sign, logabsdet = linalg.slogdet(a)
    np.testing.assert_allclose(sign.item() * math.exp(logabsdet.item()), a.det().item())
    check_twice(lambda t: linalg.slogdet(t).logabsdet, a)
    check_twice(grebe.logdet, positive(a).detach().requires_grad_())
    assert math.isnan(grebe.logdet(grebe.tensor([[-1.0]])).item())


@pytest.mark.parametrize("left", [True, False])
def test_solve(left):
    a, b = invertible(2, 3, 3), leaf(2, 3, 3, seed=1)
    x = linalg.solve(a, b, left=left)
    product = a @ x if left else x @ a
    np.testing.assert_allclose(product.detach().numpy(), b.detach().numpy(), atol=1e-12)
    check_twice(lambda a, b: linalg.solve(a, b, left=left), a, b)


def test_solve_vectors_and_batches():
    a, b = invertible(3, 3), leaf(3, seed=1)
    assert linalg.solve(a, b).shape == (3,)
    check_twice(linalg.solve, a, b)
    assert linalg.solve(invertible(2, 3, 3), leaf(2, 3)).shape == (2, 3)
    check_twice(linalg.solve, invertible(2, 3, 3), leaf(3, 1))


def test_solve_triangular():
    a, b = invertible(3, 3), leaf(3, 2)
    for upper in (True, False):
        keep = grebe.triu if upper else grebe.tril
        x = linalg.solve_triangular(a, b, upper=upper)
        np.testing.assert_allclose((keep(a) @ x).detach().numpy(), b.detach().numpy(), atol=1e-12)
        for unit in (True, False):
            check_twice(
                lambda a, b, upper=upper, unit=unit: linalg.solve_triangular(
                    a, b, upper=upper, unitriangular=unit
                ),
                a,
                b,
            )


def test_cholesky():
    a = leaf(2, 3, 3)
    lower = linalg.cholesky(positive(a))
    np.testing.assert_allclose((lower @ lower.mT - positive(a)).detach().numpy(), 0, atol=1e-12)
    assert grebe.equal(linalg.cholesky(positive(a), upper=True), lower.mT)
    check_twice(lambda t: linalg.cholesky(positive(t)), a)


# ---- factorisations ----


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 5), (2, 4, 2)])
def test_qr(shape):
    a = leaf(*shape)
    q, r = linalg.qr(a)
    k = min(shape[-2:])
    assert q.shape[-1] == r.shape[-2] == k
    np.testing.assert_allclose((q @ r).detach().numpy(), a.detach().numpy(), atol=1e-12)
    assert grebe.equal(r, grebe.triu(r))
    check_twice(lambda t: tuple(linalg.qr(t)), a)


def test_qr_modes():
    a = leaf(4, 2)
    q, r = linalg.qr(a, "complete")
    assert q.shape == (4, 4) and r.shape == (4, 2)
    with pytest.raises(RuntimeError, match="not differentiable"):
        q.sum().backward()
    q, r = linalg.qr(a, "r")
    assert q.shape == (0,) and r.shape == (2, 2)
    with pytest.raises(RuntimeError, match="mode"):
        linalg.qr(a, "full")


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4), (2, 3, 2)])
def test_svd(shape):
    a = leaf(*shape)
    u, s, vh = linalg.svd(a, full_matrices=False)
    np.testing.assert_allclose(((u * s.unsqueeze(-2)) @ vh - a).detach().numpy(), 0, atol=1e-12)
    assert grebe.equal(linalg.svdvals(a), s)

    def invariant(t):
        """Signs of pairs of singular vectors are arbitrary: products of them are not."""
        u, s, vh = linalg.svd(t, full_matrices=False)
        return s, u * u, vh * vh, u @ vh

    check_twice(invariant, a)
    full = linalg.svd(a)
    assert full.U.shape[-1] == shape[-2] and full.Vh.shape[-1] == shape[-1]
    check_twice(lambda t: linalg.svd(t).S, a)


def test_svd_forms():
    a = leaf(4, 2)
    with pytest.raises(RuntimeError, match="full_matrices"):
        linalg.svd(a).U.sum().backward()
    u, s, v = grebe.svd(a)
    np.testing.assert_allclose((u @ grebe.diag(s) @ v.mT - a).detach().numpy(), 0, atol=1e-12)


@pytest.mark.parametrize("triangle", ["L", "U"])
def test_eigh(triangle):
    a = leaf(2, 3, 3)
    values, vectors = linalg.eigh(symmetric(a), triangle)
    rebuilt = (vectors * values.unsqueeze(-2)) @ vectors.mT
    np.testing.assert_allclose((rebuilt - symmetric(a)).detach().numpy(), 0, atol=1e-12)
    assert grebe.equal(linalg.eigvalsh(symmetric(a), triangle), values)

    def invariant(t):
        values, vectors = linalg.eigh(symmetric(t), triangle)
        return values, vectors * vectors

    check_twice(invariant, a)
    with pytest.raises(RuntimeError, match="UPLO"):
        linalg.eigh(a, "X")


def test_eig():
    a = grebe.tensor([[2.0, 1.0], [2.0, 3.0]], dtype=grebe.float64, requires_grad=True)
    values, vectors = linalg.eig(a)
    assert sorted(values.tolist()) == pytest.approx([1, 4])
    np.testing.assert_allclose((a @ vectors - vectors * values).detach().numpy(), 0, atol=1e-12)
    check_twice(lambda t: (linalg.eigvals(t), linalg.eig(t).eigenvectors ** 2), a)
    with pytest.raises(NotImplementedError, match="complex"):
        linalg.eigvals(grebe.tensor([[0.0, -1.0], [1.0, 0.0]]))


# ---- pseudo-inverse and what follows ----


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4), (2, 3, 2)])
def test_pinv(shape):
    a = leaf(*shape)
    p = linalg.pinv(a)
    np.testing.assert_allclose((a @ p @ a - a).detach().numpy(), 0, atol=1e-12)
    check_twice(linalg.pinv, a)


def test_pinv_tolerances():
    a = grebe.tensor([[1.0, 0.0], [0.0, 1e-3]], dtype=grebe.float64)
    assert linalg.pinv(a).tolist() == pytest.approx(np.array([[1, 0], [0, 1000.0]]))
    assert linalg.pinv(a, atol=1e-2).tolist() == [[1, 0], [0, 0]]
    assert linalg.pinv(a, rtol=1e-2, hermitian=True).tolist() == [[1, 0], [0, 0]]
    assert linalg.matrix_rank(a).item() == 2 and linalg.matrix_rank(a, tol=0.1).item() == 1
    assert linalg.matrix_rank(grebe.zeros(2, 3, 3)).tolist() == [0, 0]
    assert linalg.cond(a).item() == pytest.approx(1000)
    assert linalg.cond(a, 1).item() == pytest.approx(1000)
    assert linalg.cond(a, -2).item() == pytest.approx(0.001)


def test_lstsq():
    a, b = leaf(5, 2), leaf(5, 3, seed=1)
    solution, residuals, rank, values = linalg.lstsq(a, b)
    expected = np.linalg.lstsq(a.detach().numpy(), b.detach().numpy(), rcond=None)
    np.testing.assert_allclose(solution.detach().numpy(), expected[0])
    np.testing.assert_allclose(residuals.detach().numpy(), expected[1])
    assert rank.item() == 2 and values.shape == (2,)
    check_twice(lambda a, b: linalg.lstsq(a, b).solution, a, b)
    assert linalg.lstsq(leaf(2, 5), leaf(2, 1)).residuals.shape == (0,)
    with pytest.raises(RuntimeError, match="fit"):
        linalg.lstsq(a, leaf(4, 3))


def test_matrix_power():
    a = invertible(3, 3)
    for n in (-3, -1, 0, 1, 2, 5):
        expected = np.linalg.matrix_power(a.detach().numpy(), n)
        np.testing.assert_allclose(linalg.matrix_power(a, n).detach().numpy(), expected)
    check_twice(lambda t: grebe.matrix_power(t, 3), a)
    check_twice(lambda t: t.matrix_power(-2), a)


def test_multi_dot():
    shapes = [(3,), (3, 7), (7, 2), (2, 5), (5,)]
    factors = [leaf(*shape, seed=i) for i, shape in enumerate(shapes)]
    expected = np.linalg.multi_dot([f.detach().numpy() for f in factors])
    np.testing.assert_allclose(linalg.multi_dot(factors).item(), expected)
    for slice_ in (slice(1, 4), slice(0, 4), slice(1, 5)):
        part = factors[slice_]
        expected = np.linalg.multi_dot([f.detach().numpy() for f in part])
        np.testing.assert_allclose(linalg.multi_dot(part).detach().numpy(), expected)
    check_twice(lambda *t: linalg.multi_dot(t), *factors[1:4])
    assert grebe.chain_matmul(*factors[1:3]).shape == (3, 2)
    with pytest.raises(RuntimeError, match="at least 2"):
        linalg.multi_dot(factors[:1])
    with pytest.raises(RuntimeError, match="multiplied"):
        linalg.multi_dot([factors[1], factors[1]])
    with pytest.raises(RuntimeError, match="dimensions"):
        linalg.multi_dot([factors[1], factors[0], factors[1]])


# ---- norms ----


@pytest.mark.parametrize("order", [2, 1, 0, 3, 0.5, 1.5, -1, -2, INF, -INF])
def test_vector_norm(order):
    x = leaf(3, 4)
    flat = np.linalg.norm(x.detach().numpy().ravel(), order)
    np.testing.assert_allclose(linalg.vector_norm(x, order).item(), flat)
    rows = np.linalg.norm(x.detach().numpy(), order, axis=1)
    np.testing.assert_allclose(linalg.vector_norm(x, order, 1).detach().numpy(), rows)
    assert linalg.vector_norm(x, order, (0, 1), keepdim=True).shape == (1, 1)
    if order != 0:
        check_twice(lambda t: linalg.vector_norm(t, order, 1), x)


@pytest.mark.parametrize("order", [2, 1, 3, 1.5, INF])
def test_norm_at_zero(order):
    x = grebe.zeros(3, requires_grad=True)
    linalg.vector_norm(x, order).backward()
    assert x.grad.tolist() == [0, 0, 0]


def test_vector_norm_special():
    assert linalg.vector_norm(grebe.tensor(-3.0)).item() == 3
    assert linalg.vector_norm(grebe.zeros(0)).item() == 0
    assert linalg.vector_norm(grebe.tensor([INF, 1.0])).item() == INF
    assert linalg.vector_norm(grebe.tensor([3.0, 4.0]), dtype=grebe.float64).dtype == grebe.float64
    with pytest.raises(RuntimeError, match="no elements"):
        linalg.vector_norm(grebe.zeros(0), INF)
    with pytest.raises(TypeError, match="floating"):
        linalg.vector_norm(grebe.tensor([1, 2]))
    with pytest.raises(TypeError, match="ord"):
        linalg.vector_norm(grebe.ones(2), "fro")


@pytest.mark.parametrize("order", ["fro", "nuc", 1, -1, 2, -2, INF, -INF])
def test_matrix_norm(order):
    x = leaf(4, 3)
    expected = np.linalg.norm(x.detach().numpy(), order)
    np.testing.assert_allclose(linalg.matrix_norm(x, order).item(), expected)
    batch = leaf(3, 2, 4)
    by_hand = np.stack([np.linalg.norm(m.numpy(), order) for m in batch.detach().movedim(1, 0)])
    np.testing.assert_allclose(linalg.matrix_norm(batch, order, (0, 2)).detach().numpy(), by_hand)
    assert linalg.matrix_norm(batch, order, (0, 2), keepdim=True).shape == (1, 2, 1)
    check_twice(lambda t: linalg.matrix_norm(t, order), x)


def test_norm():
    x = leaf(4, 3)
    two = np.linalg.norm(x.detach().numpy())
    for y in (x.norm(), grebe.norm(x), linalg.norm(x), x.norm(2), grebe.norm(x, "fro", (0, 1))):
        assert y.item() == pytest.approx(two)
    assert x.norm(dim=0, keepdim=True).shape == (1, 3) and x.norm(1, 1).shape == (4,)
    assert linalg.norm(x, 1).item() == pytest.approx(np.linalg.norm(x.detach().numpy(), 1))
    assert linalg.norm(x, 1, 0).shape == (3,)
    assert linalg.norm(leaf(2, 2, 2)).shape == ()
    assert grebe.norm(x, "nuc").item() == pytest.approx(linalg.svdvals(x).sum().item())
    with pytest.raises(RuntimeError, match="ord"):
        linalg.norm(x, 3)
    with pytest.raises(RuntimeError, match="ord"):
        linalg.norm(leaf(2, 2, 2), 2)
    with pytest.raises(RuntimeError, match="p must"):
        grebe.norm(x, "max")


# ---- products and distances ----


def test_trace():
    x = leaf(3, 4)
    assert x.trace().item() == pytest.approx(np.trace(x.detach().numpy()))
    check_twice(grebe.trace, x)
    assert grebe.trace(grebe.tensor([[1, 2], [3, 4]])).item() == 5
    with pytest.raises(RuntimeError, match="trace"):
        grebe.trace(grebe.ones(3))


def test_cross():
    a, b = leaf(2, 3), leaf(2, 3, seed=1)
    expected = np.cross(a.detach().numpy(), b.detach().numpy())
    np.testing.assert_allclose(linalg.cross(a, b).detach().numpy(), expected)
    np.testing.assert_allclose(a.cross(b).detach().numpy(), expected)
    assert grebe.cross(leaf(3, 3), leaf(3, 3)).shape == (3, 3)
    check_twice(linalg.cross, a, b)
    with pytest.raises(RuntimeError, match="size 3"):
        linalg.cross(leaf(2), leaf(2))
    with pytest.raises(RuntimeError, match="size 3"):
        grebe.cross(leaf(2), leaf(2))


def test_kron():
    a, b = leaf(2, 3), leaf(4)
    expected = np.kron(a.detach().numpy(), b.detach().numpy())
    np.testing.assert_allclose(grebe.kron(a, b).detach().numpy(), expected)
    check_twice(grebe.kron, a, b)


@pytest.mark.parametrize("p", [2, 1, 3, INF])
def test_distances(p):
    a, b = leaf(2, 4, 3), leaf(5, 3, seed=1)
    difference = a.detach().numpy()[:, :, None] - b.detach().numpy()[None, None]
    expected = np.linalg.norm(difference, p, axis=-1)
    np.testing.assert_allclose(grebe.cdist(a, b, p).detach().numpy(), expected)
    check_twice(lambda a, b: grebe.cdist(a, b, p), a, b)
    check_twice(lambda a, b: grebe.dist(a, b, p), leaf(4, 3), leaf(4, 3, seed=2))


def test_distances_by_product():
    a, b = leaf(2, 4, 3), leaf(5, 3, seed=1)
    mode = "use_mm_for_euclid_dist"
    expected = grebe.cdist(a, b).detach().numpy()
    np.testing.assert_allclose(grebe.cdist(a, b, 2, mode).detach().numpy(), expected)
    check_twice(lambda a, b: grebe.cdist(a, b, 2, mode), a, b)
    many = leaf(30, 3)
    np.testing.assert_allclose(grebe.cdist(many, many).detach().numpy().diagonal(), 0, atol=1e-6)
    grebe.cdist(many, many).sum().backward()
    assert np.isfinite(many.grad.numpy()).all()
    assert grebe.cdist(grebe.ones(2, 0), grebe.ones(3, 0)).tolist() == [[0, 0, 0]] * 2


# ---- bad input ----


SQUARE = ["inv", "det", "slogdet", "cholesky", "eigh", "eigvalsh", "eig", "eigvals"]


@pytest.mark.parametrize("name", SQUARE)
def test_not_square(name):
    with pytest.raises(RuntimeError, match="square"):
        getattr(linalg, name)(grebe.ones(2, 3))
    with pytest.raises(RuntimeError, match="2 dimensions"):
        getattr(linalg, name)(grebe.ones(3))


@pytest.mark.parametrize("name", [*SQUARE, "qr", "svd", "svdvals", "pinv", "matrix_rank", "cond"])
def test_wrong_dtype(name):
    with pytest.raises(TypeError, match="float32 or float64"):
        getattr(linalg, name)(grebe.ones(2, 2, dtype=grebe.int64))
    with pytest.raises(TypeError, match="Tensor"):
        getattr(linalg, name)(np.eye(2))


def test_singular():
    zero = grebe.zeros(2, 2)
    with pytest.raises(linalg.LinAlgError, match=r"inv.*singular"):
        linalg.inv(zero)
    with pytest.raises(linalg.LinAlgError, match=r"solve.*singular"):
        linalg.solve(zero, grebe.ones(2))
    with pytest.raises(linalg.LinAlgError, match="positive definite"):
        linalg.cholesky(-grebe.eye(2))
    with pytest.raises(linalg.LinAlgError, match="NaN"):
        linalg.svd(grebe.full((2, 2), math.nan))
    with pytest.raises(linalg.LinAlgError, match="NaN"):
        linalg.eig(grebe.full((2, 2), math.nan))
    assert linalg.det(zero).item() == 0 and linalg.slogdet(zero).logabsdet.item() == -INF
    assert issubclass(linalg.LinAlgError, RuntimeError)


def test_shapes_that_do_not_fit():
    with pytest.raises(RuntimeError, match="does not fit"):
        linalg.solve(grebe.eye(3), grebe.ones(2))
    with pytest.raises(RuntimeError, match="dtype"):
        linalg.solve(grebe.eye(3), grebe.ones(3, dtype=grebe.float64))
    with pytest.raises(RuntimeError, match="fit"):
        grebe.cdist(grebe.ones(2, 3), grebe.ones(2, 4))
    with pytest.raises(RuntimeError, match="ord"):
        linalg.matrix_norm(grebe.ones(2, 2), 3)


def test_empty():
    none = grebe.zeros(0, 0)
    assert linalg.inv(none).shape == (0, 0) and linalg.det(none).item() == 1
    assert linalg.eigh(none).eigenvalues.shape == (0,) and linalg.cholesky(none).shape == (0, 0)
    assert linalg.svd(grebe.zeros(0, 3)).U.shape == (0, 0)
    assert linalg.svdvals(grebe.zeros(0, 3)).shape == (0,)
    assert linalg.qr(grebe.zeros(0, 3)).R.shape == (0, 3)
    assert linalg.pinv(grebe.zeros(0, 3)).shape == (3, 0)
    assert linalg.solve(grebe.zeros(0, 2, 2), grebe.zeros(0, 2, 1)).shape == (0, 2, 1)
    assert linalg.matrix_norm(grebe.zeros(2, 0)).item() == 0
    assert linalg.matrix_rank(grebe.zeros(0, 3)).item() == 0
    with pytest.raises(RuntimeError, match="empty"):
        linalg.cond(none)


def test_float32_stays_float32():
    a = grebe.eye(3) + 1
    for result in (linalg.inv(a), linalg.det(a), *linalg.slogdet(a), *linalg.qr(a), *linalg.svd(a),
                   *linalg.eigh(a), *linalg.eig(a), linalg.pinv(a), linalg.solve(a, a),
                   linalg.cholesky(a), linalg.norm(a), linalg.cond(a)):  # fmt: skip
        assert result.dtype == grebe.float32


@pytest.mark.parametrize("name", ["qr", "svd", "eigh", "eig"])
def test_writing_to_a_factor_is_noticed(name: str) -> None:
    a = grebe.eye(3) + grebe.ones(3, 3)
    factors = getattr(grebe.linalg, name)(a.requires_grad_())
    with grebe.no_grad():
        factors[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified"):
        sum(f.sum() for f in factors).backward()
