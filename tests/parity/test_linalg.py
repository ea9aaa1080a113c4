"""Linear algebra against PyTorch: values and gradients."""

import numpy as np
import pytest

import grebe

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
SQUARE = RNG.standard_normal((2, 3, 3)) + 2 * np.eye(3)
TALL, WIDE = RNG.standard_normal((5, 3)), RNG.standard_normal((3, 5))
B = RNG.standard_normal((2, 3, 2))
INF = float("inf")


def positive(t, x):
    return x @ x.mT + t.eye(3, dtype=t.float64)


CALLS = {
    "inv": (lambda t, x: t.linalg.inv(x), SQUARE),
    "det": (lambda t, x: t.linalg.det(x), SQUARE),
    "slogdet": (lambda t, x: t.linalg.slogdet(x)[1], SQUARE),
    "logdet": (lambda t, x: t.logdet(positive(t, x)), SQUARE),
    "solve": (lambda t, x: t.linalg.solve(x, t.tensor(B)), SQUARE),
    "solve_left": (lambda t, x: t.linalg.solve(x, t.tensor(B).mT, left=False), SQUARE),
    "solve_vector": (lambda t, x: t.linalg.solve(x, t.tensor(B)[..., 0]), SQUARE),
    "solve_right_side": (lambda t, x: t.linalg.solve(t.tensor(SQUARE), x), B),
    "solve_triangular": (
        lambda t, x: t.linalg.solve_triangular(x, t.tensor(B), upper=True), SQUARE),
    "cholesky": (lambda t, x: t.linalg.cholesky(positive(t, x)), SQUARE),
    "cholesky_upper": (lambda t, x: t.linalg.cholesky(positive(t, x), upper=True), SQUARE),
    "qr_q": (lambda t, x: t.linalg.qr(x).Q, TALL),
    "qr_r": (lambda t, x: t.linalg.qr(x)[1], TALL),
    "qr_wide": (lambda t, x: t.linalg.qr(x)[0].sum() + t.linalg.qr(x)[1], WIDE),
    "svd_s": (lambda t, x: t.linalg.svd(x).S, TALL),
    "svdvals": (lambda t, x: t.linalg.svdvals(x), SQUARE),
    "svd_vectors": (lambda t, x: t.linalg.svd(x, full_matrices=False)[0] ** 2, WIDE),
    "svd_old": (lambda t, x: t.svd(x)[2] ** 2, TALL),
    "eigvalsh": (lambda t, x: t.linalg.eigvalsh(x + x.mT), SQUARE),
    "eigh": (lambda t, x: t.linalg.eigh(x + x.mT)[1] ** 2, SQUARE),
    "pinv": (lambda t, x: t.linalg.pinv(x), WIDE),
    "pinverse": (lambda t, x: t.pinverse(x), TALL),
    "lstsq": (lambda t, x: t.linalg.lstsq(x, t.tensor(TALL[:, :2]))[0], TALL[:, 1:]),
    "matrix_power": (lambda t, x: t.linalg.matrix_power(x, -3), SQUARE),
    "multi_dot": (lambda t, x: t.linalg.multi_dot([x, t.tensor(WIDE), x]), TALL),
    "cond": (lambda t, x: t.linalg.cond(x), SQUARE),
    "cond_smallest": (lambda t, x: t.linalg.cond(x, -2), SQUARE),
    "norm": (lambda t, x: t.norm(x), TALL),
    "norm_3": (lambda t, x: t.norm(x, 3, dim=1), TALL),
    "norm_nuc": (lambda t, x: t.norm(x, "nuc"), TALL),
    "linalg_norm": (lambda t, x: t.linalg.norm(x, INF), TALL),
    "linalg_norm_dim": (lambda t, x: t.linalg.norm(x, 1, dim=0, keepdim=True), TALL),
    **{f"vector_norm_{p}": (lambda t, x, p=p: t.linalg.vector_norm(x, p, dim=-1), TALL)
       for p in (0, 0.5, 1, 1.5, 2, 4, -1, INF, -INF)},
    **{f"matrix_norm_{p}": (lambda t, x, p=p: t.linalg.matrix_norm(x, p, keepdim=True), SQUARE)
       for p in ("fro", "nuc", 1, -1, 2, -2, INF, -INF)},
    "trace": (lambda t, x: t.trace(x), WIDE),
    "cross": (lambda t, x: t.cross(x, t.tensor(TALL)[:, [2, 0, 1]], dim=1), TALL),
    "linalg_cross": (lambda t, x: t.linalg.cross(x, x.flip(-1)), TALL),
    "kron": (lambda t, x: t.kron(x, t.tensor(WIDE)), TALL),
    "dist": (lambda t, x: t.dist(x, t.tensor(WIDE).mT, 3), TALL),
    "cdist": (lambda t, x: t.cdist(x, t.tensor(WIDE).mT), TALL),
    "cdist_1": (lambda t, x: t.cdist(x, t.tensor(WIDE).mT, 1.0), TALL),
    "cdist_self": (lambda t, x: t.cdist(x, x), TALL),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_like_torch(name):
    call, data = CALLS[name]
    values, gradients = [], []
    for library in (grebe, torch):
        x = library.tensor(data, requires_grad=True)
        y = call(library, x)
        weights = np.cos(np.arange(y.detach().numpy().size)).reshape(tuple(y.shape))
        if y.requires_grad:
            (y * library.tensor(weights)).sum().backward()
        values.append(y.detach().numpy())
        gradients.append(np.zeros(data.shape) if x.grad is None else x.grad.numpy())
    assert values[0].shape == values[1].shape
    np.testing.assert_allclose(*values, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(*gradients, rtol=1e-7, atol=1e-9)


def test_ranks_like_torch():
    deficient = TALL @ np.diag([1, 1, 0.0])
    for options in ({}, {"atol": 0.5}, {"rtol": 0.5}, {"tol": 1.0}):
        ours = grebe.linalg.matrix_rank(grebe.tensor(deficient), **options)
        assert ours.item() == torch.linalg.matrix_rank(torch.tensor(deficient), **options).item()
