"""The matrix product: the kernel on awkward sizes and layouts, then the ops made of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import _cpu
from grebe.ops.matmul import linear

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float64) -> Array:
    return RNG.standard_normal(shape).astype(dtype)


def transposed(a: Array) -> Array:
    """The same values, stored with the last two dimensions exchanged."""
    return np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)


def every_other(a: Array) -> Array:
    room = np.full(tuple(2 * n for n in a.shape), np.nan, a.dtype)
    view = room[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


LAYOUTS = {"N": np.ascontiguousarray, "T": transposed, "S": every_other}


def product(a: Array, b: Array, bias: Array | None, c: Array, relu: bool, beta: float) -> Array:
    """The kernel with 1 and with 2 threads, which must agree to the bit."""
    results = []
    for threads in (1, 2):
        _cpu.set_num_threads(threads)
        out = c.copy()
        _cpu.matmul(a, b, bias, out, int(relu), beta)
        results.append(out)
    assert results[0].tobytes() == results[1].tobytes(), "1 and 2 threads differ"
    return results[0]


def close(got: Array, a: Array, b: Array, expected: Array) -> None:
    """Error of a dot product: at most a few eps times the product of absolute values."""
    eps = np.finfo(got.dtype).eps
    scale = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)) + np.abs(expected) + 1
    k = a.shape[-1]
    assert got.shape == expected.shape and got.dtype == a.dtype
    assert np.all(np.abs(got - expected) <= (4 + k**0.5) * eps * scale)


# Around vector widths, tile sizes (6 rows, 12 rows; 64 columns), depth of a k block.
ROWS = [1, 2, 5, 6, 7, 12, 13, 49, 65, 130]
COLUMNS = [1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 130]
DEPTHS = [1, 2, 7, 16, 31, 64, 255, 257, 383, 385, 769]
SIZES = [
    size
    for i, size in enumerate(itertools.product(ROWS, COLUMNS, DEPTHS))
    if i % 7 == 0 or 1 in size[:2]
]


@DTYPES
@pytest.mark.parametrize("layout", ["NN", "NT", "TN", "TT", "SN", "NS"])
def test_kernel_sizes(layout: str, dtype: Any) -> None:
    for m, n, k in SIZES:
        a = LAYOUTS[layout[0]](normal(m, k, dtype=dtype))
        b = LAYOUTS[layout[1]](normal(k, n, dtype=dtype))
        c = np.full((m, n), np.nan, dtype)
        got = product(a, b, None, c, False, 0.0)
        close(got, a, b, a.astype(np.float64) @ b.astype(np.float64))


@DTYPES
@pytest.mark.parametrize("layout", ["NN", "NT", "TN", "TT"])
@pytest.mark.parametrize(
    "size",
    [
        (200, 700, 400),
        (700, 130, 900),
        (5000, 70, 33),
        (33, 2100, 401),
        (300, 300, 300),
        (1, 1000, 900),  # one row: strips, then beyond 4 MB all columns at a time
        (1, 9000, 301),
        (1000, 1, 1100),
        (200, 10, 300),  # fewer columns than lanes
        (97, 3, 70),
        (150, 33, 9000),  # k in blocks: few columns, b larger than L2
        (141, 64, 3000),
        (20, 17, 20000),
        (1, 60, 20000),
        (140, 200, 1024),  # a in place: one block of k, two, two of columns
        (140, 200, 1025),
        (140, 2049, 100),
        (4100, 65, 390),  # a dense along m: packed in two blocks of rows
        (2, 3001, 1051),  # columns from memory: short, then long ones
        (16, 1501, 2101),
    ],
)
def test_kernel_large(size: tuple[int, int, int], layout: str, dtype: Any) -> None:
    m, n, k = size
    a = LAYOUTS[layout[0]](normal(m, k, dtype=dtype))
    b = LAYOUTS[layout[1]](normal(k, n, dtype=dtype))
    bias = normal(n, dtype=dtype)
    got = product(a, b, bias, np.full((m, n), np.nan, dtype), False, 0.0)
    close(got, a, b, a.astype(np.float64) @ b.astype(np.float64) + bias)


@DTYPES
@pytest.mark.parametrize("layout", ["NN", "NT", "TN"])
@pytest.mark.parametrize(
    "size",
    [
        (1, 1, 1),
        (1, 40, 9),
        (40, 1, 90),
        (1, 600, 70),
        (7, 5, 300),
        (70, 70, 900),
        (13, 33, 10000),
        (140, 133, 1300),  # two blocks of k
    ],
)
def test_kernel_epilogue(size: tuple[int, int, int], layout: str, dtype: Any) -> None:
    m, n, k = size
    a = LAYOUTS[layout[0]](normal(m, k, dtype=dtype))
    b = LAYOUTS[layout[1]](normal(k, n, dtype=dtype))
    plain = a.astype(np.float64) @ b.astype(np.float64)
    for with_bias, relu, beta in itertools.product((False, True), (False, True), (0.0, 1.0, -0.5)):
        bias = normal(n, dtype=dtype) if with_bias else None
        c = normal(m, n, dtype=dtype) if beta else np.full((m, n), np.nan, dtype)
        expected = plain + (beta * c if beta else 0) + (bias if with_bias else 0)
        got = product(a, b, bias, c, relu, beta)
        close(got, a, b, np.maximum(expected, 0) if relu else expected)


@DTYPES
def test_kernel_output_rows_apart(dtype: Any) -> None:
    for m, n, k in [(3, 5, 7), (50, 70, 20), (1, 9, 40), (9, 1, 40), (300, 200, 900)]:
        room = np.full((m, n + 3), 7.0, dtype)
        a, b = normal(m, k, dtype=dtype), normal(k, n, dtype=dtype)
        _cpu.matmul(a, b, None, room[:, :n], 0, 0.0)
        close(room[:, :n], a, b, a.astype(np.float64) @ b.astype(np.float64))
        assert (room[:, n:] == 7).all()


@DTYPES
def test_kernel_empty(dtype: Any) -> None:
    bias = normal(4, dtype=dtype)
    got = product(np.empty((3, 0), dtype), np.empty((0, 4), dtype), bias,
                  np.full((3, 4), np.nan, dtype), False, 0.0)  # fmt: skip
    assert (got == bias).all()
    for m, n in [(0, 4), (3, 0), (0, 0)]:
        c = np.empty((m, n), dtype)
        assert product(normal(m, 5, dtype=dtype), normal(5, n, dtype=dtype), None, c, False,
                       0.0).shape == (m, n)  # fmt: skip


@DTYPES
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((2, 5, 7), (2, 7, 3)),
        ((4, 1, 5, 6), (3, 6, 2)),
        ((3, 4, 5), (5, 2)),
        ((5, 4), (3, 4, 2)),
        ((6, 1, 9), (9, 20)),
        ((200, 3, 4), (200, 4, 5)),
        ((3, 70, 200), (3, 200, 90)),
        ((2, 300, 300), (2, 300, 300)),
        ((0, 3, 4), (4, 5)),
        ((7,), (7,)),
        ((50, 70), (70,)),
        ((70,), (70, 50)),
        ((3, 50, 70), (70,)),
        ((70,), (3, 70, 50)),
    ],
)
def test_kernel_batches(a_shape: tuple[int, ...], b_shape: tuple[int, ...], dtype: Any) -> None:
    a, b = normal(*a_shape, dtype=dtype), normal(*b_shape, dtype=dtype)
    layouts_a = [a] if a.ndim == 1 else [a, transposed(a), every_other(a)]
    layouts_b = [b] if b.ndim == 1 else [b, transposed(b), every_other(b)]
    expected = np.asarray(a.astype(np.float64) @ b.astype(np.float64))
    for x, y in itertools.product(layouts_a, layouts_b):
        got = product(x, y, None, np.full(expected.shape, np.nan, dtype), False, 0.0)
        scale = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64) + 1
        assert np.all(np.abs(got - expected) <= 20 * np.finfo(dtype).eps * scale)


@DTYPES
@pytest.mark.parametrize("size", [(1, 10, 10), (9, 20, 40), (10, 3, 200), (100, 130, 800)])
@pytest.mark.parametrize("layout", ["NN", "NT", "TN"])
def test_kernel_nan_and_inf(size: tuple[int, int, int], layout: str, dtype: Any) -> None:
    m, n, k = size
    a = LAYOUTS[layout[0]](normal(m, k, dtype=dtype))
    b = LAYOUTS[layout[1]](normal(k, n, dtype=dtype))
    a[0, k // 2], a[-1, 0], b[k - 1, n - 1] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = a.astype(np.float64) @ b.astype(np.float64)
        clipped = np.where(expected < 0, 0, expected)
    got = product(a, b, None, np.zeros((m, n), dtype), False, 0.0)
    relu = product(a, b, None, np.zeros((m, n), dtype), True, 0.0)
    for x, y in ((got, expected), (relu, clipped)):
        assert (np.isnan(x) == np.isnan(y)).all()
        assert (np.isposinf(x) == np.isposinf(y)).all()
        assert (np.isneginf(x) == np.isneginf(y)).all()


# ---- bfloat16 ----

BF16_SIZES = [
    (1, 1, 1),
    (3, 4, 5),
    (1, 9, 7),
    (9, 1, 7),  # one column
    (65, 63, 64),
    (130, 129, 257),  # odd depth
    (1, 700, 301),  # one row: strips, then beyond 4 MB
    (1, 9000, 301),
    (200, 10, 300),  # fewer columns than lanes
    (48, 64, 1000),  # dots
    (300, 200, 900),
    (33, 2100, 1701),  # packed, several k blocks
    (140, 140, 2501),
    (3, 6001, 1052),  # columns from memory
    (130, 40, 20001),  # deep
    (5, 4, 0),
]


@pytest.mark.parametrize("layout", ["NN", "NT", "TN", "TT", "SN", "NS"])
@pytest.mark.parametrize("size", BF16_SIZES)
def test_kernel_bfloat16(size: tuple[int, int, int], layout: str) -> None:
    """Against float64 of the rounded inputs: one rounding, plus float32 errors of the sum."""
    m, n, k = size
    a = LAYOUTS[layout[0]](normal(m, k, dtype=grebe.bfloat16))
    b = LAYOUTS[layout[1]](normal(k, n, dtype=grebe.bfloat16))
    x, y = a.astype(np.float64), b.astype(np.float64)
    for with_bias, relu, beta in [(0, 0, 0.0), (1, 0, 0.0), (1, 1, 1.0), (0, 0, -0.5)]:
        bias = normal(n, dtype=grebe.bfloat16) if with_bias else None
        c = normal(m, n, dtype=grebe.bfloat16) if beta else np.full((m, n), np.nan, grebe.bfloat16)
        expected = x @ y
        if bias is not None:
            expected += bias.astype(np.float64)
        if beta:
            expected += beta * c.astype(np.float64)
        got = product(a, b, bias, c, bool(relu), beta)
        scale = np.abs(x) @ np.abs(y) + np.abs(expected) + 1
        expected = np.maximum(expected, 0) if relu else expected
        allowed = 2.0**-8 * np.abs(expected) * 1.01 + (4 + k**0.5) * 2.0**-23 * scale
        assert got.dtype == grebe.bfloat16
        assert np.all(np.abs(got.astype(np.float64) - expected) <= allowed)


def test_bfloat16_rounds_to_nearest_even() -> None:
    """Products with 1 round the sum 1 + i / 512 as ml_dtypes does; NaN and infinities stay."""
    values = 1 + np.arange(64) / 512
    pairs = np.stack([np.ones(64), np.arange(64) / 512], 1).astype(grebe.bfloat16)
    ones = np.ones((2, 3), grebe.bfloat16)
    got = product(pairs, ones, None, np.zeros((64, 3), grebe.bfloat16), False, 0.0)
    assert (got[:, 0] == values.astype(grebe.bfloat16)).all()
    for special in (np.nan, np.inf, -np.inf):
        pairs[0, 0] = special
        got = product(pairs, ones, None, np.zeros((64, 3), grebe.bfloat16), False, 0.0)
        np.testing.assert_array_equal(got[0].astype(float), [special] * 3)
    big = np.full((1, 1), 3e38, grebe.bfloat16)
    two = np.full((1, 1), 2.0, grebe.bfloat16)
    assert np.isposinf(product(big, two, None, np.zeros_like(big), False, 0.0).astype(float)).all()


@pytest.mark.parametrize("shapes", [((9, 33), (33, 17)), ((2, 5, 40), (40, 6)), ((40,), (40, 6)),
                                    ((6, 40), (40,)), ((3, 4, 40), (3, 40, 5))])  # fmt: skip
def test_matmul_bfloat16(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    arrays = [normal(*s, dtype=grebe.bfloat16) for s in shapes]
    half = [grebe.from_numpy(a).requires_grad_() for a in arrays]
    full = [grebe.from_numpy(a.astype(np.float64)).requires_grad_() for a in arrays]
    y, z = grebe.matmul(*half), grebe.matmul(*full)
    assert y.dtype == grebe.bfloat16
    grad = normal(*y.shape, dtype=grebe.bfloat16)
    y.backward(grebe.from_numpy(grad))
    z.backward(grebe.from_numpy(grad.astype(np.float64)))
    gradients = [(h.grad, f.grad) for h, f in zip(half, full, strict=True)]
    for got, expected in [(y.detach(), z.detach()), *gradients]:
        assert got is not None and got.dtype == grebe.bfloat16 and expected is not None
        np.testing.assert_allclose(
            got.numpy().astype(float), expected.numpy(), rtol=2**-8, atol=1e-5
        )


def test_linear_bfloat16() -> None:
    layer = grebe.nn.Linear(784, 10).to(grebe.bfloat16)
    x = grebe.from_numpy(normal(64, 784, dtype=grebe.bfloat16)).requires_grad_()
    y = layer(x)
    y.backward(grebe.ones_like(y))
    wide = x.array.astype(float), layer.weight.array.astype(float), layer.bias.array.astype(float)
    ones = np.ones((64, 10))
    for got, expected in [
        (y.detach(), wide[0] @ wide[1].T + wide[2]),
        (x.grad, ones @ wide[1]),
        (layer.weight.grad, ones.T @ wide[0]),
        (layer.bias.grad, ones.sum(0)),
    ]:
        assert got is not None and got.dtype == grebe.bfloat16
        np.testing.assert_allclose(got.numpy().astype(float), expected, rtol=2**-8, atol=1e-4)


# ---- ops ----


def tensor(*shape: int, grad: bool = True) -> grebe.Tensor:
    return grebe.tensor(normal(*shape), requires_grad=grad)


MATMULS = [
    ((4,), (4,)),
    ((3, 4), (4,)),
    ((4,), (4, 5)),
    ((3, 4), (4, 5)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (3, 4, 2)),
    ((1, 3, 4), (2, 4, 5)),
    ((0, 3, 4), (4, 5)),
    ((3, 0), (0, 2)),
    ((1, 1), (1, 1)),
]


@pytest.mark.parametrize(("a_shape", "b_shape"), MATMULS)
def test_matmul(a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> None:
    a, b = tensor(*a_shape), tensor(*b_shape)
    y = grebe.matmul(a, b)
    expected = np.matmul(a.detach().numpy(), b.detach().numpy())
    assert y.shape == expected.shape
    np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-13)
    if a.array.size:
        assert grebe.autograd.gradcheck(grebe.matmul, (a, b))
        assert grebe.autograd.gradgradcheck(grebe.matmul, (a, b))


def test_matmul_of_views() -> None:
    a, b = tensor(5, 3), tensor(6, 5)

    def f(a: grebe.Tensor, b: grebe.Tensor) -> grebe.Tensor:
        return grebe.matmul(a.transpose(0, 1), b.transpose(0, 1)[:, ::2])

    np.testing.assert_allclose(
        f(a, b).detach().numpy(), a.detach().numpy().T @ b.detach().numpy().T[:, ::2], atol=1e-13
    )
    assert grebe.autograd.gradcheck(f, (a, b))


def test_matmul_of_memory_that_kernels_refuse() -> None:
    """A field of packed records: strides are no multiple of the item size."""
    records = np.zeros((6, 5), np.dtype([("tag", np.uint8), ("value", np.float32)]))
    records["value"] = normal(6, 5)
    a, b = records["value"], normal(5, 4, dtype=np.float32)
    got = grebe.matmul(grebe.from_numpy(a), grebe.from_numpy(b)).numpy()
    np.testing.assert_allclose(got, a @ b, rtol=1e-5, atol=1e-6)


def test_matmul_integers() -> None:
    a, b = np.arange(6).reshape(2, 3), np.arange(12).reshape(3, 4)
    y = grebe.matmul(grebe.tensor(a), grebe.tensor(b))
    assert y.dtype == np.int64 and (y.numpy() == a @ b).all()


def test_named_products() -> None:
    a, b, v, w = tensor(3, 4), tensor(4, 5), tensor(4), tensor(3)
    batch_a, batch_b = tensor(2, 3, 4), tensor(2, 4, 5)
    for got, expected in [
        (grebe.mm(a, b), a.array @ b.array),
        (grebe.bmm(batch_a, batch_b), batch_a.array @ batch_b.array),
        (grebe.mv(a, v), a.array @ v.array),
        (grebe.dot(v, v), v.array @ v.array),
        (grebe.outer(w, v), np.outer(w.array, v.array)),
        (grebe.inner(batch_a, a), np.inner(batch_a.array, a.array)),
        (grebe.tensordot(batch_a, b, dims=1), np.tensordot(batch_a.array, b.array, 1)),
        (
            grebe.tensordot(batch_a, batch_b, dims=([0, 2], [0, 1])),
            np.tensordot(batch_a.array, batch_b.array, ([0, 2], [0, 1])),
        ),
    ]:
        np.testing.assert_allclose(got.detach().numpy(), expected, atol=1e-13)
    for f, inputs in [
        (grebe.mm, (a, b)),
        (grebe.bmm, (batch_a, batch_b)),
        (grebe.mv, (a, v)),
        (grebe.dot, (v, tensor(4))),
        (grebe.outer, (w, v)),
        (lambda x, y: grebe.tensordot(x, y, dims=([0, 2], [0, 1])), (batch_a, batch_b)),
    ]:
        assert grebe.autograd.gradcheck(f, inputs)


@pytest.mark.parametrize("shape", [(3, 5), (5,), (1, 5), (3, 1), ()])
@pytest.mark.parametrize(("beta", "alpha"), [(1, 1), (0.5, 2), (0, 1)])
def test_addmm(shape: tuple[int, ...], beta: float, alpha: float) -> None:
    c, a, b = tensor(*shape), tensor(3, 4), tensor(4, 5)

    def f(c: grebe.Tensor, a: grebe.Tensor, b: grebe.Tensor) -> grebe.Tensor:
        return grebe.addmm(c, a, b, beta=beta, alpha=alpha)

    expected = beta * c.array + alpha * (a.array @ b.array)
    np.testing.assert_allclose(f(c, a, b).detach().numpy(), expected, atol=1e-13)
    assert grebe.autograd.gradcheck(f, (c, a, b))
    assert grebe.autograd.gradgradcheck(f, (c, a, b))


def test_baddbmm_and_addmv() -> None:
    inputs = tensor(2, 3, 5), tensor(2, 3, 4), tensor(2, 4, 5)
    c, a, b = (t.array for t in inputs)
    np.testing.assert_allclose(grebe.baddbmm(*inputs).detach().numpy(), c + a @ b, atol=1e-13)
    assert grebe.autograd.gradcheck(grebe.baddbmm, inputs)
    vectors = tensor(3), tensor(3, 4), tensor(4)
    c, a, b = (t.array for t in vectors)
    np.testing.assert_allclose(grebe.addmv(*vectors).detach().numpy(), c + a @ b, atol=1e-13)
    assert grebe.autograd.gradcheck(grebe.addmv, vectors)


@pytest.mark.parametrize("shape", [(6, 4), (4,), (2, 3, 4), (0, 4), (2, 0, 4)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(shape: tuple[int, ...], with_bias: bool) -> None:
    x, w = tensor(*shape), tensor(5, 4)
    inputs = (x, w, tensor(5)) if with_bias else (x, w)
    y = linear(*inputs)
    expected = x.array @ w.array.T + (inputs[-1].array if with_bias else 0)
    np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-13)
    y.sum().backward()
    assert w.grad is not None and w.grad.shape == w.shape
    if x.array.size:
        assert grebe.autograd.gradcheck(linear, inputs)
        assert grebe.autograd.gradgradcheck(linear, inputs)


EQUATIONS = [
    ("ij,jk->ik", [(3, 4), (4, 5)]),
    ("ij,jk", [(3, 4), (4, 5)]),
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
    ("bij,bkj->bki", [(2, 3, 4), (2, 5, 4)]),
    ("...ij,...jk->...ik", [(2, 1, 3, 4), (6, 4, 5)]),
    ("ii->i", [(4, 4)]),
    ("ii", [(4, 4)]),
    ("ij->ji", [(3, 4)]),
    ("ij->", [(3, 4)]),
    ("i,i->", [(4,), (4,)]),
    ("i,j->ij", [(3,), (4,)]),
    ("ij,ij->ij", [(3, 4), (3, 4)]),
    ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
    ("abc,cd,b->ad", [(2, 3, 4), (4, 5), (3,)]),
    ("iij,j->i", [(3, 3, 4), (4,)]),
    ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)]),
    ("ab,cd->", [(2, 3), (4, 5)]),
]


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [tensor(*s) for s in shapes]
    expected = np.einsum(equation, *(t.array for t in operands))
    got = grebe.einsum(equation, *operands)
    assert got.shape == np.shape(expected)
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=1e-12)

    def f(*operands: grebe.Tensor) -> grebe.Tensor:
        return grebe.einsum(equation, *operands)

    assert grebe.autograd.gradcheck(f, tuple(operands))


def test_errors() -> None:
    a, b = grebe.ones(2, 3), grebe.ones(4, 5)
    half = grebe.ones(3, 2).to(grebe.float16)
    for error, words, call in [
        (RuntimeError, r"matmul.*\[2, 3\] and \[4, 5\]", lambda: grebe.matmul(a, b)),
        (RuntimeError, r"matmul.*\[\]", lambda: grebe.matmul(a, grebe.tensor(1.0))),
        (RuntimeError, "float32, float64", lambda: grebe.matmul(a, grebe.ones(3, 2).double())),
        (TypeError, "float16", lambda: grebe.matmul(half.transpose(0, 1), half)),
        (RuntimeError, "bfloat16", lambda: grebe.matmul(a, grebe.ones(3, 2).to(grebe.bfloat16))),
        (TypeError, "matmul: other.*list", lambda: grebe.matmul(a, [1.0])),
        (RuntimeError, r"mm: mat2.*2 dim.*\[3\]", lambda: grebe.mm(a, grebe.ones(3))),
        (RuntimeError, "bmm", lambda: grebe.bmm(grebe.ones(2, 3, 4), grebe.ones(3, 4, 5))),
        (RuntimeError, "addmm", lambda: grebe.addmm(grebe.ones(7), a, grebe.ones(3, 5))),
        (RuntimeError, r"linear.*\[2, 3\] and \[4, 5\]", lambda: linear(a, b)),
        (RuntimeError, r"bias \[4\]", lambda: linear(a, grebe.ones(4, 3), grebe.ones(5))),
        (RuntimeError, "tensordot", lambda: grebe.tensordot(a, b, dims=1)),
        (IndexError, "tensordot", lambda: grebe.tensordot(a, b, dims=([5], [0]))),
        (RuntimeError, "einsum.*'j'", lambda: grebe.einsum("ij,jk", a, b)),
        (RuntimeError, "einsum.*2 operands", lambda: grebe.einsum("ij,jk", a)),
        (RuntimeError, "einsum", lambda: grebe.einsum("ij->ik", a)),
        (RuntimeError, "einsum", lambda: grebe.einsum("ijk->i", a)),
        (RuntimeError, "einsum.*repeated|stands for", lambda: grebe.einsum("ii->i", a)),
    ]:
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize("layout", ["NN", "TN", "NT"])
@pytest.mark.parametrize("m, n", [(1, 64), (8, 64), (64, 64), (256, 64), (64, 1), (256, 256)])
def test_long_sums_stay_accurate(m: int, n: int, layout: str) -> None:
    k = 4096
    rng = np.random.default_rng(0)
    a = rng.standard_normal((m, k) if layout[0] == "N" else (k, m)).astype(np.float32)
    b = rng.standard_normal((k, n) if layout[1] == "N" else (n, k)).astype(np.float32)
    if layout[0] == "T":
        a = a.T
    if layout[1] == "T":
        b = b.T
    truth = a.astype(np.float64) @ b.astype(np.float64)
    error = np.sqrt(np.mean(((grebe.from_numpy(a) @ grebe.from_numpy(b)).numpy() - truth) ** 2))
    # Products of k terms of size 1 in chains of 1024 additions; one chain of 4096: twice as much.
    assert error <= 6e-5, f"rms error {error:.3g}"
