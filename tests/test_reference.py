"""The reference's own backward against central differences along a random direction."""

from __future__ import annotations

import numpy as np
import pytest

from cases import CASES, Case
from reference import REFERENCES

# Long double allows a step so small that no random input lies that close to a kink.
STEP = 1e-8


SMOOTH = [case for case in CASES if not case.is_edge]


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_backward(case: Case) -> None:
    reference = REFERENCES[case.op]
    inputs = case.draw(np.longdouble)
    rng = np.random.default_rng(1)
    with np.errstate(all="ignore"):
        grad = np.asarray(rng.standard_normal(reference.forward(*inputs, **case.kwargs).shape))
        grad = grad.astype(np.longdouble)
        ways = [rng.standard_normal(x.shape) if x.dtype.kind == "f" else None for x in inputs]

        def along(step: float) -> np.ndarray:
            moved = [x if w is None else x + step * w for x, w in zip(inputs, ways, strict=True)]
            return reference.forward(*moved, **case.kwargs)

        expected = np.sum(grad * (along(STEP) - along(-STEP))) / (2 * STEP)
        assert reference.backward is not None
        grads = reference.backward(grad, *inputs, **case.kwargs)
    assert len(grads) == len(inputs)
    total = 0.0
    for x, g, way in zip(inputs, grads, ways, strict=True):
        if way is not None:
            assert g is not None and g.shape == x.shape
            total += float(np.sum(g * way))
    assert total == pytest.approx(expected, rel=1e-5, abs=1e-5)
