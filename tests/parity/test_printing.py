"""Tensors print as in PyTorch, word for word but for the package's name."""

import numpy as np
import pytest

import grebe

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
CASES = {
    "scalar": np.array(3.25),
    "int_scalar": np.array(7),
    "vector": np.array([1.0, 2.0, 3.0], np.float32),
    "fractions": np.array([[1.5, -2.25], [3, 4]], np.float32),
    "integral": np.array([[1, -20], [300, 4]], np.float32),
    "doubles": np.array([0.1, 1e-3]),
    "small": np.array([1e-5, 1.0]),
    "tiny_only": np.array([1e-7, 2e-7], np.float32),
    "wide": np.array([1e-3, 1e3], np.float32),
    "ratio_1000": np.array([1.0, 1000.0], np.float32),
    "ratio_1001": np.array([1.0, 1001.0], np.float32),
    "large": np.array([1e9, 2e9], np.float32),
    "below_1e8": np.array([9.9e7, 9.8e7], np.float32),
    "nonfinite": np.array([np.nan, np.inf, -np.inf], np.float32),
    "nan_and_numbers": np.array([np.nan, 1, -2], np.float32),
    "inf_and_fractions": np.array([np.inf, 1.5, -np.inf], np.float32),
    "zeros": np.zeros((2, 3), np.float32),
    "negative_zero": np.array([-0.0, 0.0], np.float32),
    "ints": np.array([[1, -20], [300, 4]]),
    "int32": np.array([1, 2], np.int32),
    "uint8": np.array([1, 200], np.uint8),
    "bools": np.array([[True, False], [False, True]]),
    "float16": np.array([1.5, 2.3], np.float16),
    "empty": np.zeros(0, np.float32),
    "empty_int": np.zeros(0, np.int64),
    "empty_2d": np.zeros((0, 3), np.float32),
    "empty_double": np.zeros((2, 0, 3)),
    "lines": np.arange(40, dtype=np.float32),
    "many_lines": RNG.standard_normal(100).astype(np.float32),
    "long_rows": RNG.standard_normal((2, 30)),
    "three_dims": RNG.standard_normal((2, 3, 4)).astype(np.float32),
    "four_dims": np.arange(24).reshape(2, 1, 3, 4),
    "threshold": np.arange(1000),
    "abridged": np.arange(1001),
    "abridged_2d": RNG.standard_normal((40, 40)).astype(np.float32),
    "abridged_rows": RNG.standard_normal((500, 3)),
    "abridged_columns": RNG.standard_normal((2, 900)),
    "abridged_3d": RNG.standard_normal((20, 5, 30)).astype(np.float32),
    "abridged_spike": np.where(np.arange(2000) == 1000, 1e12, 1.0),
    "ones_dims": np.ones((1, 1, 1, 1), np.float32),
}  # fmt: skip
OPTIONS = [
    {},
    {"precision": 2},
    {"precision": 7, "linewidth": 60},
    {"edgeitems": 1, "threshold": 10},
    {"profile": "short"},
    {"profile": "full"},
    {"sci_mode": True},
    {"sci_mode": False},
    {"linewidth": 20},
]


def ours(tensor) -> str:
    return repr(tensor).replace("grebe.", "torch.")


@pytest.fixture(autouse=True)
def default_options():
    yield
    for library in (grebe, torch):
        library.set_printoptions(profile="default")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_like_torch(name, options):
    array = CASES[name]
    for library in (grebe, torch):
        library.set_printoptions(**{"profile": "default", **options})
    assert ours(grebe.tensor(array)) == repr(torch.tensor(array))


@pytest.mark.parametrize("seed", range(60))
def test_random_tensors_like_torch(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, size=rng.integers(0, 5)))
    scale = 10.0 ** rng.integers(-6, 9)
    array = np.asarray(rng.standard_normal(shape) * scale * 10.0 ** rng.integers(-1, 2, shape))
    if seed % 3 == 1:
        array = np.round(array)
    if seed % 5 == 2:
        array = np.where(rng.random(shape) < 0.2, rng.choice([np.nan, np.inf, -np.inf, 0]), array)
    array = array.astype([np.float32, np.float64][seed % 2])
    assert ours(grebe.tensor(array)) == repr(torch.tensor(array))


def test_bfloat16_like_torch():
    values = [[0.1, 1.0], [-2.5, 300.0]]
    a = grebe.tensor(values, dtype=grebe.bfloat16)
    assert ours(a) == repr(torch.tensor(values, dtype=torch.bfloat16))


def test_suffixes_like_torch():
    for values, dtype in (([1.0, 2.0], "float32"), ([0.5] * 13, "float64"), ([], "float64")):
        a = grebe.tensor(values, dtype=getattr(grebe, dtype), requires_grad=True)
        b = torch.tensor(values, dtype=getattr(torch, dtype), requires_grad=True)
        assert ours(a) == repr(b)
        assert ours(a.exp()) == repr(b.exp()).replace("Backward0", "Backward")


def test_default_dtype_like_torch():
    try:
        for library in (grebe, torch):
            library.set_default_dtype(library.float64)
        assert ours(grebe.tensor([1.0])) == repr(torch.tensor([1.0]))
        a, b = grebe.zeros(1, dtype=grebe.float32), torch.zeros(1, dtype=torch.float32)
        assert ours(a) == repr(b)
    finally:
        for library in (grebe, torch):
            library.set_default_dtype(library.float32)
