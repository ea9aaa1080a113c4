"""Random calls of every public function: a result or a clear error, never a crash.

An AttributeError, a KeyError or an error of the extension module's own argument checks would mean
that an argument reached the inside unchecked.
"""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import grebe
import grebe.nn.functional as F
from grebe.ops import MODULES

CLEAR = (TypeError, ValueError, RuntimeError, IndexError, MemoryError, NotImplementedError,
         OverflowError)  # fmt: skip

# They print, change global state, or take files.
LEFT_OUT = {"set_printoptions", "set_default_dtype", "manual_seed", "seed", "set_rng_state"}

FUNCTIONS = {
    f"{module.__name__.removeprefix('grebe.')}.{name}": getattr(module, name)
    for module in (*MODULES, F)
    for name in (getattr(module, "__all__", None) or dir(module))
    if not name.startswith("_") and name not in LEFT_OUT
    and inspect.isfunction(getattr(module, name))
    and getattr(module, name).__module__.startswith("grebe.")
}  # fmt: skip

SIZES = st.integers(0, 4)
SHAPES = st.lists(SIZES, max_size=4).map(tuple)
DTYPES = st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.float16, np.uint8])


def _tensor(shape, dtype, seed, layout, wanted):
    values = np.random.default_rng(seed).integers(-3, 4, tuple(reversed(shape)))
    array = values.astype(dtype).T
    if layout == "contiguous":
        array = np.ascontiguousarray(array)
    if layout == "broadcast" and array.ndim:
        array = np.broadcast_to(array[:1], array.shape)
    tensor = grebe.from_numpy(array)
    return tensor.requires_grad_() if wanted and np.dtype(dtype).kind == "f" else tensor


TENSORS = st.builds(
    _tensor, SHAPES, DTYPES, st.integers(0, 9),
    st.sampled_from(["contiguous", "reversed", "broadcast"]), st.booleans(),
)  # fmt: skip
OTHERS = st.one_of(
    st.integers(-5, 5), st.floats(-4, 4), st.none(), st.booleans(), st.just("mean"), SHAPES,
    st.lists(TENSORS, max_size=3), st.just(float("nan")), DTYPES,
)  # fmt: skip
ARGUMENTS = st.lists(st.one_of(TENSORS, TENSORS, OTHERS), max_size=4)


def _backward(result):
    parts = result if isinstance(result, (tuple, list)) else (result,)
    for part in parts:
        if isinstance(part, grebe.Tensor) and part.requires_grad:
            grebe.autograd.backward(part, grebe.ones_like(part), retain_graph=True)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(arguments=ARGUMENTS, first=TENSORS)
def test_result_or_clear_error(name, arguments, first):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for args in (arguments, [first, *arguments]):
            try:
                _backward(FUNCTIONS[name](*args))
            except CLEAR as error:
                assert "_cpu." not in str(error), error
