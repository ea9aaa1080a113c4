"""Sorting, selecting, searching, counting and running operations."""

import math

import numpy as np
import pytest

import grebe
from grebe.autograd import gradcheck, gradgradcheck

NAN, INF = math.nan, math.inf


def leaf(shape, seed=0):
    """Distinct numbers in random order."""
    rng = np.random.default_rng(seed)
    values = rng.permutation(int(np.prod(shape))) / 7.0 - 1.0
    return grebe.tensor(values.reshape(shape), dtype=grebe.float64, requires_grad=True)


def check_twice(function, *inputs):
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


# ---- sorting ----


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_sort(dim, descending):
    x = leaf((4, 5))
    values, indices = grebe.sort(x, dim, descending)
    expected = np.sort(x.detach().numpy(), dim)
    expected = np.flip(expected, dim) if descending else expected
    assert indices.dtype == grebe.int64
    assert np.array_equal(values.detach().numpy(), expected)
    assert grebe.equal(x.gather(dim, indices), values)
    assert grebe.equal(grebe.argsort(x, dim, descending), indices)
    check_twice(lambda t: grebe.sort(t, dim, descending).values, x)


def test_sort_is_stable():
    x = grebe.tensor([2, 1, 2, 1, 2])
    assert x.sort().indices.tolist() == [1, 3, 0, 2, 4]
    assert x.sort(descending=True).indices.tolist() == [0, 2, 4, 1, 3]


def test_sort_special_values():
    x = grebe.tensor([NAN, 1.0, -INF, INF])
    assert x.argsort().tolist() == [2, 1, 3, 0]
    assert x.argsort(descending=True).tolist() == [0, 3, 1, 2]
    assert grebe.tensor([True, False, True]).sort().values.tolist() == [False, True, True]
    half = grebe.tensor([2.0, NAN, 1.0], dtype=grebe.bfloat16).sort()
    assert half.values.dtype == grebe.bfloat16 and half.indices.tolist() == [2, 0, 1]


@pytest.mark.parametrize("name", ["sort", "kthvalue", "median", "mode", "cummax", "cummin", "topk"])
def test_scalars(name):
    arguments = {"kthvalue": (1, 0), "topk": (1,), "cummax": (0,), "cummin": (0,)}.get(name, (0,))
    values, indices = getattr(grebe, name)(grebe.tensor(2.5), *arguments)
    assert values.shape == indices.shape == () and values.item() == 2.5 and indices.item() == 0


def test_empty():
    x = grebe.zeros(0, 3)
    assert x.sort(0).values.shape == (0, 3) and x.sort(1).indices.shape == (0, 3)
    assert x.topk(2).values.shape == (0, 2) and x.topk(0, 0).indices.shape == (0, 3)
    assert x.cumsum(0).shape == x.cummax(0).values.shape == x.cumprod(1).shape == (0, 3)
    assert x.unique().shape == (0,) and x.diff(dim=0).shape == (0, 3)
    assert math.isnan(x.median().item())
    for name, arguments in (("median", (0,)), ("mode", (0,)), ("quantile", (0.5, 0))):
        with pytest.raises(IndexError, match=name):
            getattr(x, name)(*arguments)


def test_dimension_errors():
    x = grebe.zeros(2, 3)
    for name in ("sort", "argsort", "cumsum", "cumprod", "cummax", "logcumsumexp", "mode"):
        with pytest.raises(IndexError, match=f"{name}.*dim"):
            getattr(x, name)(2)
    with pytest.raises(TypeError, match="Tensor"):
        grebe.sort([1, 2])


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_topk(k, largest):
    x = leaf((3, 5, 2))
    values, indices = x.topk(k, 1, largest)
    expected = x.sort(1, largest).values[:, :k]
    assert grebe.equal(values, expected)
    assert grebe.equal(x.gather(1, indices), values)
    if k:
        check_twice(lambda t: t.topk(k, 1, largest).values, x)


def test_topk_special():
    assert grebe.tensor([1.0, NAN, 3.0]).topk(2).indices.tolist() == [1, 2]
    assert grebe.tensor([1.0, NAN, 3.0]).topk(2, largest=False).indices.tolist() == [0, 2]
    with pytest.raises(RuntimeError, match="k must be"):
        grebe.zeros(3).topk(4)
    with pytest.raises(TypeError, match="k must be"):
        grebe.zeros(3).topk(1.5)


def test_kthvalue():
    x = leaf((4, 5))
    for k in range(1, 6):
        values, indices = grebe.kthvalue(x, k)
        assert np.array_equal(values.detach().numpy(), np.sort(x.detach().numpy(), 1)[:, k - 1])
        assert grebe.equal(x.gather(1, indices.unsqueeze(1)).squeeze(1), values)
    assert x.kthvalue(2, 0, keepdim=True).values.shape == (1, 5)
    check_twice(lambda t: t.kthvalue(2, 0).values, x)
    with pytest.raises(RuntimeError, match="k must be"):
        x.kthvalue(0)


def test_median():
    x = grebe.tensor([[5.0, 1.0, 4.0, 2.0], [NAN, 1.0, NAN, 2.0]])
    assert x[0].median().item() == 2 and math.isnan(x.median().item())
    values, indices = x.median(1)
    assert values[0].item() == 2 and math.isnan(values[1].item()) and indices.tolist() == [3, 0]
    assert x.nanmedian(1).values.tolist() == [2, 1] and x.nanmedian().item() == 2
    assert math.isnan(grebe.tensor([NAN]).nanmedian().item())
    assert x.median(1, keepdim=True).indices.shape == (2, 1)
    assert grebe.tensor([3, 1, 2]).median().item() == 2
    check_twice(lambda t: t.median(0).values, leaf((5, 3)))
    check_twice(lambda t: t.median(), leaf((5, 3)))


@pytest.mark.parametrize("interpolation", ["linear", "lower", "higher", "midpoint", "nearest"])
def test_quantile(interpolation):
    x = leaf((6, 5))
    for q in (0.3, [0.0, 0.25, 1.0]):
        fractions = q if isinstance(q, float) else grebe.tensor(q, dtype=grebe.float64)
        for dim in (None, 0, 1):
            y = grebe.quantile(x, fractions, dim, interpolation=interpolation).detach().numpy()
            expected = np.quantile(x.detach().numpy(), q, dim, method=interpolation)
            np.testing.assert_allclose(y, expected)
    check_twice(lambda t: grebe.quantile(t, 0.3, 1, True, interpolation=interpolation), x)


def test_quantile_errors():
    assert math.isnan(grebe.tensor([1.0, NAN]).quantile(0.0).item())
    with pytest.raises(RuntimeError, match="q must"):
        grebe.ones(3).quantile(1.5)
    with pytest.raises(RuntimeError, match="float32"):
        grebe.ones(3, dtype=grebe.int64).quantile(0.5)
    with pytest.raises(RuntimeError, match="interpolation"):
        grebe.ones(3).quantile(0.5, interpolation="cubic")


def test_mode():
    x = grebe.tensor([[3, 1, 3, 1, 2], [5, 5, 4, 4, 4]])
    values, indices = x.mode()
    assert values.tolist() == [1, 4] and grebe.equal(x.gather(1, indices[:, None])[:, 0], values)
    assert x.mode(0, keepdim=True).values.shape == (1, 5)


# ---- distinct elements ----


def test_unique():
    x = grebe.tensor([[3, 1, 3], [2, 1, 1]])
    values, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    assert values.tolist() == [1, 2, 3] and counts.tolist() == [3, 1, 2]
    assert grebe.equal(values[inverse], x)
    assert grebe.unique(x).tolist() == [1, 2, 3]
    rows, inverse = grebe.tensor([[2, 1], [0, 3], [2, 1]]).unique(dim=0, return_inverse=True)
    assert rows.tolist() == [[0, 3], [2, 1]] and inverse.tolist() == [1, 0, 1]
    assert grebe.tensor([NAN, NAN]).unique().shape == (2,)


def test_unique_consecutive():
    x = grebe.tensor([1, 1, 2, 2, 2, 1])
    values, inverse, counts = x.unique_consecutive(return_inverse=True, return_counts=True)
    assert values.tolist() == [1, 2, 1] and counts.tolist() == [2, 3, 1]
    assert inverse.tolist() == [0, 0, 1, 1, 1, 2]
    columns = grebe.tensor([[1, 1, 0], [2, 2, 0]]).unique_consecutive(dim=1)
    assert columns.tolist() == [[1, 0], [2, 0]]
    assert grebe.zeros(0).unique_consecutive().shape == (0,)


def test_isin():
    assert grebe.isin(grebe.tensor([1, 2, 3]), grebe.tensor([2, 5])).tolist() == [
        False,
        True,
        False,
    ]
    assert grebe.isin(2, grebe.tensor([2])).item() is True


# ---- searching and counting ----


def test_searchsorted():
    s, v = grebe.tensor([1, 3, 5, 5, 7]), grebe.tensor([[0, 5], [6, 9]])
    assert grebe.searchsorted(s, v).tolist() == [[0, 2], [4, 5]]
    assert grebe.searchsorted(s, v, right=True).tolist() == [[0, 4], [4, 5]]
    assert grebe.searchsorted(s, 5, side="right").item() == 4
    assert grebe.searchsorted(s, v, out_int32=True).dtype == grebe.int32
    rows = grebe.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert grebe.searchsorted(rows, grebe.tensor([[1.5], [9.0]])).tolist() == [[1], [2]]
    mixed = grebe.tensor([5, 1, 3])
    assert grebe.searchsorted(mixed, 4, sorter=mixed.argsort()).item() == 2
    assert grebe.bucketize(v, s, right=True).tolist() == [[0, 4], [4, 5]]
    with pytest.raises(RuntimeError, match="shape"):
        grebe.searchsorted(rows, grebe.zeros(3, 1))
    with pytest.raises(RuntimeError, match="side"):
        grebe.searchsorted(s, v, right=True, side="left")
    with pytest.raises(RuntimeError, match="sorter"):
        grebe.searchsorted(mixed, 4, sorter=grebe.tensor([0, 1, 9]))
    with pytest.raises(RuntimeError, match="1-D"):
        grebe.bucketize(v, rows)


def test_bincount():
    x = grebe.tensor([1, 3, 1])
    assert x.bincount().tolist() == [0, 2, 0, 1]
    assert x.bincount(minlength=6).tolist() == [0, 2, 0, 1, 0, 0]
    assert x.bincount(grebe.tensor([0.5, 1.0, 0.25])).tolist() == [0, 0.75, 0, 1]
    assert grebe.zeros(0, dtype=grebe.int64).bincount().shape == (0,)
    for bad in (grebe.tensor([-1]), grebe.tensor([1.0]), grebe.tensor([[1]])):
        with pytest.raises(RuntimeError, match="bincount"):
            bad.bincount()
    with pytest.raises(RuntimeError, match="weights"):
        x.bincount(grebe.ones(2))


def test_histc():
    x = grebe.tensor([0.0, 1.0, 1.5, 2.0, 9.0])
    assert grebe.histc(x, 2, 0, 2).tolist() == [1, 3]
    assert grebe.histc(x, 3).tolist() == [4, 0, 1]
    assert grebe.histc(grebe.tensor([4.0, 4.0]), 2).tolist() == [0, 2]
    assert grebe.histc(grebe.tensor([NAN, 1.0]), 1, 0, 2).tolist() == [1]
    with pytest.raises(RuntimeError, match="bins"):
        x.histc(0)
    with pytest.raises(RuntimeError, match="finite"):
        grebe.tensor([INF, 1.0]).histc(3)


# ---- running operations ----


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("name", ["cumsum", "cumprod", "logcumsumexp"])
def test_running(name, dim):
    x = leaf((4, 3))
    reference = {
        "cumsum": np.cumsum,
        "cumprod": np.cumprod,
        "logcumsumexp": np.logaddexp.accumulate,
    }
    y = getattr(x, name)(dim)
    np.testing.assert_allclose(y.detach().numpy(), reference[name](x.detach().numpy(), axis=dim))
    check_twice(lambda t: getattr(t, name)(dim), x)


def test_cumprod_with_zeros():
    x = grebe.tensor([[2.0, 0.0, 3.0, 0.0], [1.0, 2.0, 0.0, 4.0]], dtype=grebe.float64)
    check_twice(lambda t: t.cumprod(1), x.requires_grad_())


def test_running_dtypes():
    x = grebe.tensor([True, True, False])
    assert x.cumsum(0).tolist() == [1, 2, 2] and x.cumsum(0).dtype == grebe.int64
    assert grebe.tensor([200, 100], dtype=grebe.uint8).cumsum(0).tolist() == [200, 300]
    assert grebe.tensor([2, 3]).cumprod(0).tolist() == [2, 6]
    assert grebe.tensor([1, 2]).cumsum(0, dtype=grebe.float64).dtype == grebe.float64
    many = grebe.ones(1000, dtype=grebe.bfloat16).cumsum(0)
    assert many.dtype == grebe.bfloat16 and many[-1].item() == 1000
    assert grebe.tensor(3.0).cumsum(0).item() == 3


def test_logcumsumexp_special():
    x = grebe.tensor([-INF, 0.0, 1000.0, -INF], dtype=grebe.float64, requires_grad=True)
    y = x.logcumsumexp(0)
    assert y.tolist() == [-INF, 0, 1000, 1000]
    y[1:].sum().backward()
    assert x.grad.tolist() == [0, 1, 2, 0]
    with pytest.raises(RuntimeError, match="floating"):
        grebe.tensor([1]).logcumsumexp(0)


def test_cummax():
    x = grebe.tensor([[1.0, 3.0, 3.0, 2.0], [NAN, 1.0, 5.0, NAN]])
    values, indices = x.cummax(1)
    assert values[0].tolist() == [1, 3, 3, 3] and indices.tolist() == [[0, 1, 2, 2], [0, 0, 0, 3]]
    assert x.cummin(1).indices[0].tolist() == [0, 0, 0, 0]
    for name in ("cummax", "cummin"):
        check_twice(lambda t, name=name: getattr(t, name)(1).values, leaf((3, 5)))


def test_diff():
    x = leaf((3, 5))
    for n in range(4):
        expected = np.diff(x.detach().numpy(), n=n, axis=1)
        np.testing.assert_allclose(x.diff(n).detach().numpy(), expected)
    ends = grebe.tensor([1, 2, 4]).diff(prepend=grebe.tensor([0]), append=grebe.tensor([9]))
    assert ends.tolist() == [1, 1, 2, 5]
    assert grebe.tensor([True, True, False]).diff().tolist() == [False, True]
    check_twice(lambda t: t.diff(2, 0), x)
    with pytest.raises(RuntimeError, match="dimension"):
        grebe.tensor(1.0).diff()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("largest", [True, False])
def test_topk_of_rows(dtype, largest):
    """Ties, NaN and infinities, on either side of the kernel's largest k."""
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 5), (2, 17), (40, 100), (2, 5000)):
        for x in (
            rng.standard_normal(shape),
            rng.integers(0, 4, shape),
            -np.sort(-rng.random(shape)),
        ):
            x = np.where(rng.random(shape) < 0.1, np.inf, x).astype(dtype)
            x = np.where(rng.random(shape) < 0.1, np.nan, x).astype(dtype)
            for k in {1, min(5, shape[1]), min(64, shape[1]), min(65, shape[1])}:
                values, index = grebe.from_numpy(x).topk(k, 1, largest)
                wanted = np.sort(x, 1)  # NaN last
                wanted = wanted[:, ::-1][:, :k] if largest else wanted[:, :k]
                np.testing.assert_array_equal(values.numpy(), wanted)
                np.testing.assert_array_equal(np.take_along_axis(x, index.numpy(), 1), wanted)
                assert all(len(set(row)) == k for row in index.numpy().tolist())
