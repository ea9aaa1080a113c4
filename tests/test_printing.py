"""How tensors print."""

import numpy as np
import pytest

import grebe


@pytest.fixture(autouse=True)
def default_options():
    yield
    grebe.set_printoptions(profile="default")


def test_aligned_columns():
    assert (
        repr(grebe.tensor([[1.0, 2.0], [3.0, 40.0]])) == "tensor([[ 1.,  2.],\n        [ 3., 40.]])"
    )
    assert repr(grebe.tensor([1.5, -2.25])) == "tensor([ 1.5000, -2.2500])"
    assert repr(grebe.tensor([True, False])) == "tensor([ True, False])"
    assert repr(grebe.tensor([[[1]], [[-20]]])) == "tensor([[[  1]],\n\n        [[-20]]])"


def test_scalars():
    assert repr(grebe.tensor(2.5)) == "tensor(2.5000)"
    assert repr(grebe.tensor(3)) == "tensor(3)"
    assert f"{grebe.tensor(2.5):.1f}" == "2.5"


def test_notations():
    assert repr(grebe.tensor([1.0, 2000.0])) == "tensor([1.0000e+00, 2.0000e+03])"
    assert repr(grebe.tensor([1e-5])) == "tensor([1.0000e-05])"
    assert repr(grebe.tensor([float("inf"), float("nan"), 1.0])) == "tensor([inf, nan, 1.])"
    grebe.set_printoptions(sci_mode=False)
    assert repr(grebe.tensor([1e-5])) == "tensor([0.0000])"


def test_abridged():
    assert repr(grebe.arange(1001)) == "tensor([   0,    1,    2,  ...,  998,  999, 1000])"
    text = repr(grebe.zeros(100, 100))
    assert text.splitlines()[3] == "        ...,"
    assert text.count("0.") == 36


def test_suffixes():
    assert repr(grebe.zeros(0, 3)) == "tensor([], size=(0, 3))"
    assert repr(grebe.zeros(0, dtype=grebe.int64)) == "tensor([], dtype=grebe.int64)"
    assert repr(grebe.tensor([1.0], dtype=grebe.float64)) == "tensor([1.], dtype=grebe.float64)"
    assert repr(grebe.tensor([1.0], dtype=grebe.bfloat16)) == "tensor([1.], dtype=grebe.bfloat16)"
    leaf = grebe.tensor([1.0], requires_grad=True)
    assert repr(leaf) == "tensor([1.], requires_grad=True)"
    assert repr(leaf + leaf) == "tensor([2.], grad_fn=<AddBackward>)"


def test_strided_and_read_only_arrays():
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    array.flags.writeable = False
    expected = "tensor([[0., 3.],\n        [1., 4.],\n        [2., 5.]])"
    assert repr(grebe.from_numpy(array)) == expected


def test_options():
    grebe.set_printoptions(precision=1, edgeitems=1, threshold=3)
    assert repr(grebe.tensor([0.25, 1.0, 2.0, 3.5])) == "tensor([0.2,  ..., 3.5])"
    grebe.set_printoptions(profile="full")
    assert "..." not in repr(grebe.zeros(2000))
    grebe.set_printoptions(profile="short")
    assert repr(grebe.tensor([0.125])) == "tensor([0.12])"
    with pytest.raises(ValueError, match="profile"):
        grebe.set_printoptions(profile="tiny")
    with pytest.raises(ValueError, match="precision"):
        grebe.set_printoptions(precision=-1)
