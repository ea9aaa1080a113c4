"""The cases of tests/cases.py through PyTorch: the same call gives the same result there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import grebe
from cases import CASES, Array, Case
from check import cotangent
from reference import REFERENCES


def results(lib: object, case: Case) -> list[Array]:
    """[output, gradient of each floating input...] in float64."""
    tensors = [lib.from_numpy(a) for a in case.draw(np.float64)]  # type: ignore[attr-defined]
    tensors = [t.requires_grad_() if t.is_floating_point() else t for t in tensors]
    output = case.run(lib, *tensors)  # type: ignore[arg-type]
    arrays = [output.detach().numpy()]
    if REFERENCES[case.op].backward:
        grad = lib.from_numpy(cotangent(arrays[0], 1))  # type: ignore[attr-defined]
        output.backward(grad)
        arrays += [t.grad.numpy() for t in tensors if t.requires_grad]
    return arrays


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # PyTorch's, of kl_div
@pytest.mark.parametrize("case", CASES, ids=str)
def test_call(case: Case) -> None:
    for ours, theirs in zip(results(grebe, case), results(torch, case), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
