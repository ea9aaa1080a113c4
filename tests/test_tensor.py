"""Tensor: creation, dtypes, indexing, conversions, errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import grebe


def test_creation_dtypes():
    assert grebe.tensor([1.0, 2]).dtype == grebe.float32
    assert grebe.tensor([1, 2]).dtype == grebe.int64
    assert grebe.tensor(True).dtype == grebe.bool
    assert grebe.tensor(np.float64(1)).dtype == grebe.float64
    assert grebe.tensor(np.zeros(2, np.float16)).dtype == grebe.float16
    assert grebe.tensor([1, 2], dtype=grebe.bfloat16).dtype == grebe.bfloat16
    assert grebe.arange(3).dtype == grebe.int64 and grebe.arange(3.0).dtype == grebe.float32
    assert grebe.full((2,), 1).dtype == grebe.int64
    assert grebe.Tensor([1, 2]).dtype == grebe.float32 and grebe.Tensor(2, 3).shape == (2, 3)


@pytest.mark.parametrize(("a", "b", "expected"), [
    (grebe.float32, grebe.float64, grebe.float64), (grebe.int64, grebe.float32, grebe.float32),
    (grebe.int64, grebe.float16, grebe.float16), (grebe.uint8, grebe.int8, grebe.int16),
    (grebe.bfloat16, grebe.float16, grebe.float32), (grebe.bool, grebe.uint8, grebe.uint8),
])  # fmt: skip
def test_promotion(a, b, expected):
    x, y = grebe.ones(2, dtype=a), grebe.ones(2, dtype=b)
    assert (x + y).dtype == expected and (y * x).dtype == expected
    assert (x + y).tolist() == [2, 2]


def test_numbers_and_0d_tensors_do_not_widen():
    x = grebe.ones(2)
    assert (x * 2.5).dtype == grebe.float32
    assert (x * grebe.tensor(2.5, dtype=grebe.float64)).dtype == grebe.float32
    assert (grebe.arange(2) * 2.5).dtype == grebe.float32
    assert (grebe.arange(2) / 2).dtype == grebe.float32
    assert (grebe.arange(2) + True).dtype == grebe.int64
    assert (2 - x).tolist() == [1, 1] and (2 / x).tolist() == [2, 2] and (2**x).tolist() == [2, 2]


def test_numpy_operands():
    x = grebe.ones(3)
    for result in (x + np.ones(3), np.ones(3) + x, x * np.float64(2), np.float64(2) * x):
        assert isinstance(result, grebe.Tensor) and result.tolist() == [2, 2, 2]


def test_integer_arithmetic():
    a, b = grebe.tensor([7, -7]), grebe.tensor([2, 2])
    assert (a // b).tolist() == [3, -4] and (a % b).tolist() == [1, 1]
    assert a.div(b, rounding_mode="trunc").tolist() == [3, -3]
    assert (a**2).tolist() == [49, 49] and (-a).tolist() == [-7, 7] and (a & 3).tolist() == [3, 1]
    with pytest.raises(RuntimeError, match="division by zero"):
        a // grebe.tensor([0, 1])


def test_broadcast_error_names_both_shapes():
    with pytest.raises(RuntimeError, match=r"add: shapes \[2, 3\] and \[4\]"):
        grebe.ones(2, 3) + grebe.ones(4)


def test_basic_indexing_is_a_view():
    x = grebe.arange(24.0).reshape(2, 3, 4)
    x[1, :, 2:].fill_(0)
    assert x.array[1, :, 2:].sum() == 0
    assert x[..., -1].shape == (2, 3) and x[:, None].shape == (2, 1, 3, 4)
    assert x[1, 2, 3].shape == () and x[-1].shape == (3, 4)
    assert x[grebe.tensor(1)].shape == (3, 4)


def test_advanced_indexing():
    x = grebe.arange(12.0).reshape(3, 4)
    assert x[[0, 2]].shape == (2, 4) and x[:, grebe.tensor([1, 1])].shape == (3, 2)
    assert x[x > 5].tolist() == [6, 7, 8, 9, 10, 11]
    assert x[grebe.tensor([True, False, True])].shape == (2, 4)
    assert x[grebe.tensor([[0, 1], [2, 0]])].shape == (2, 2, 4)
    x[[0, 0], [1, 2]] = grebe.tensor([5.0, 6.0])
    assert x[0].tolist() == [0, 5, 6, 3]
    x[x > 5] = -1
    assert float(x.max()) == 5


@pytest.mark.parametrize("index", [3, (0, 4), (slice(None), [4]), (0, 0, 0), [-4], (0, -5)])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match=r"does not fit shape \[3, 4\]"):
        grebe.zeros(3, 4)[index]


def test_index_of_a_wrong_kind():
    x = grebe.zeros(3)
    with pytest.raises(IndexError, match="integer or bool"):
        x[grebe.tensor([1.0])]
    with pytest.raises(ValueError, match="positive"):
        x[::-1]
    with pytest.raises(IndexError, match="got str"):
        x["a"]
    with pytest.raises(RuntimeError, match=r"value of shape \[2\]"):
        x[:] = grebe.ones(2)
    with pytest.raises(IndexError, match="index 7 out of range"):
        grebe.gather(grebe.zeros(2, 2), 0, grebe.tensor([[7, 0]]))


def test_numpy_shares_memory_and_asks_for_detach():
    a = np.zeros(3, np.float32)
    x = grebe.from_numpy(a)
    a[0] = 5
    assert x[0].item() == 5 and x.numpy() is a and np.asarray(x) is a
    with pytest.raises(RuntimeError, match="detach"):
        x.requires_grad_().numpy()


def test_dlpack_both_ways():
    x = grebe.arange(6.0).reshape(2, 3)
    a = np.from_dlpack(x)
    a[0, 0] = 9
    assert x[0, 0].item() == 9
    y = grebe.from_dlpack(a)
    y[0, 1] = 8
    assert x[0, 1].item() == 8
    with pytest.raises(BufferError, match="requires grad"):
        grebe.ones(2, requires_grad=True).__dlpack__()


def test_pickle_and_deepcopy():
    x = grebe.ones(2, 3, requires_grad=True)
    x.sum().backward()
    for twin in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert twin.requires_grad and twin.tolist() == x.tolist()
        assert not np.shares_memory(twin.array, x.array)
    assert copy.deepcopy(x).grad.tolist() == x.grad.tolist()
    with pytest.raises(RuntimeError, match="leaf"):
        copy.deepcopy(x * 2)


def test_scalars():
    x = grebe.tensor(3.5)
    assert float(x) == 3.5 and int(x) == 3 and bool(x) and x.item() == 3.5
    assert [0, 1, 2][grebe.tensor(1)] == 1 and f"{x:.2f}" == "3.50"
    with pytest.raises(RuntimeError, match="ambiguous"):
        bool(grebe.ones(2))
    with pytest.raises(TypeError):
        len(x)


def test_memory_format_is_strides():
    x = grebe.zeros(2, 3, 4, 5).contiguous(memory_format=grebe.channels_last)
    assert x.is_contiguous(memory_format=grebe.channels_last) and not x.is_contiguous()
    for y in (x + x, x.relu(), x * 2, grebe.zeros_like(x), x.clone(), x + grebe.ones(1)):
        assert y.array.strides == x.array.strides


def test_equality_and_hash():
    x = grebe.ones(2)
    assert (x == grebe.ones(2)).tolist() == [True, True] and (x != 1).tolist() == [False, False]
    assert (x != None) and x != "a" and {x: 1}[x] == 1  # noqa: E711
    assert grebe.equal(x, grebe.ones(2)) and not grebe.equal(x, grebe.ones(3))


def test_unknown_device_is_named():
    for make in (lambda: grebe.zeros(2, device="cuda"), lambda: grebe.zeros(2).to("cuda:0"),
                 lambda: grebe.zeros(2).cuda()):  # fmt: skip
        with pytest.raises(RuntimeError, match="not available"):
            make()
    with pytest.raises(RuntimeError, match="expected 'cpu'"):
        grebe.device("tpu")


@pytest.mark.parametrize("call", [
    lambda: grebe.zeros(-1), lambda: grebe.zeros("a"), lambda: grebe.zeros(2, dtype="no"),
    lambda: grebe.tensor([[1], [1, 2]]), lambda: grebe.tensor("a"), lambda: grebe.tensor(None),
    lambda: grebe.ones(2).reshape(3), lambda: grebe.ones(2, 3).reshape(-1, -1),
    lambda: grebe.ones(2, 3).transpose(0, 2), lambda: grebe.ones(2, 3).permute(0, 0),
    lambda: grebe.ones(2, 3).expand(3, 3), lambda: grebe.cat([]), lambda: grebe.cat([1, 2]),
    lambda: grebe.cat([grebe.ones(2, 3), grebe.ones(3, 2)]), lambda: grebe.ones(3).sum(1),
    lambda: grebe.ones(2, 0).max(1), lambda: grebe.relu(1), lambda: grebe.add(grebe.ones(2), "a"),
    lambda: grebe.ones(2).to("nowhere"), lambda: grebe.arange(0, 1, 0), lambda: grebe.eye(-1),
    lambda: grebe.zeros(1 << 40, 1 << 40), lambda: grebe.ones(2).clamp(), lambda: grebe.stack([]),
    lambda: grebe.ones(4).split(0), lambda: grebe.ones(4).narrow(0, 3, 2),
    lambda: grebe.ones(2)[5],
])  # fmt: skip
def test_bad_calls_raise(call):
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError, MemoryError)) as info:
        call()
    assert str(info.value)
