"""Every case: forward and backward against the float64 reference.

The bound: twice the error that plain NumPy makes in the same dtype, plus a small floor. Each case
runs with 1 and with 2 threads, which must agree to the bit, the second time on buffers that the
first run left full of NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import grebe
from cases import CASES, Array, Case
from check import TRUTH, check, expected, run


def strided(a: Array) -> Array:
    """The same values on every second element of every axis of a larger array."""
    room = np.full(tuple(2 * n for n in a.shape), 123, a.dtype)
    view = room[(..., *(slice(None, None, 2) for _ in a.shape))]
    view[...] = a
    return view


def reversed_axes(a: Array) -> Array:
    """The same values with the first axis the densest."""
    return a.T.copy().T


LAYOUTS = {"contiguous": np.array, "strided": strided, "reversed": reversed_axes}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_op(case: Case, dtype: Any, layout: str) -> None:
    plain_inputs = case.draw(dtype)
    inputs = [LAYOUTS[layout](a) for a in plain_inputs]
    grebe.set_num_threads(1)
    one = run(case, inputs)
    grebe.set_num_threads(2)
    two = run(case, inputs)
    plain = expected(case, plain_inputs, dtype)
    truth = expected(case, plain_inputs, TRUTH[dtype])
    names = ["output"] + [f"gradient {i}" for i in range(len(truth) - 1)]
    assert len(one) == len(truth)
    for name, a, b, p, t in zip(names, one, two, plain, truth, strict=True):
        assert a.dtype == dtype and a.tobytes() == b.tobytes(), f"{name}: 1 and 2 threads differ"
        check(name, a, p, t, case.floor)
