"""How a case is run and judged, shared by test_ops.py and the benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np

import grebe
from cases import Array, Case
from grebe import backend
from reference import REFERENCES

# What the errors of a dtype are measured against.
TRUTH = {np.float32: np.float64, np.float64: np.longdouble}


DEVICE = "cpu"  # where `run` computes


def set_emulator(lazy: bool, seed: int, capability: int = 90) -> None:
    """How the emulated GPU runs: set_options of csrc/cuda/module.cpp. A real one stays as it is."""
    device = backend.cuda()
    if device.emulated:
        device.kernels.set_options(lazy, seed, capability)


def leaf(lib: Any, a: Array) -> Any:
    tensor = lib.from_numpy(a) if DEVICE == "cpu" else on_device(lib, a)
    return tensor.requires_grad_() if a.dtype.kind == "f" else tensor


def on_device(lib: Any, a: Array) -> Any:
    """`a` on the device with its strides: as the same view of a copy of its base."""
    if a.base is None:
        return lib.from_numpy(a).to(DEVICE)
    base = lib.from_numpy(np.asarray(a.base)).to(DEVICE)
    if a.base.shape == a.shape[::-1]:
        return base.permute(*reversed(range(a.ndim))) if a.ndim else base
    return base[(..., *(slice(None, None, 2) for _ in a.shape))]


def run(case: Case, inputs: list[Array], grad_seed: int = 1) -> list[Array]:
    """[output, gradient of each floating input...] by grebe, copied; the originals become NaN."""
    leaves = [leaf(grebe, a.copy(order="K") if a.base is None else a) for a in inputs]
    output = case.run(grebe, *leaves)
    results = [output.detach()]
    if REFERENCES[case.op].backward:
        like = results[0].cpu().numpy()
        output.backward(grebe.from_numpy(cotangent(like, grad_seed)).to(DEVICE))
        results += [x.grad for x in leaves if x.requires_grad]
    assert all(r.device.type == DEVICE for r in results)
    copies = [np.array(r.cpu().numpy()) for r in results]
    for r in results:
        if r.dtype.kind == "f" and (DEVICE != "cpu" or r.array.flags.writeable):
            r.array.fill(np.nan)
    return copies


def cotangent(like: Array, seed: int) -> Array:
    """The gradient that comes from above: N(0, 1), the same for all dtypes up to rounding."""
    return np.asarray(np.random.default_rng(seed).standard_normal(like.shape)).astype(like.dtype)


def expected(case: Case, inputs: list[Array], dtype: Any) -> list[Array]:
    """The results of `run` by the reference, evaluated in `dtype`."""
    reference = REFERENCES[case.op]
    wide = [a.astype(dtype) if a.dtype.kind == "f" else a for a in inputs]
    source = next(a.dtype for a in inputs if a.dtype.kind == "f")
    with np.errstate(all="ignore"):
        output = np.asarray(reference.forward(*wide, **case.kwargs))
        if not reference.backward:
            return [output]
        grad = cotangent(output.astype(source), 1).astype(dtype)
        grads = reference.backward(grad, *wide, **case.kwargs)
    floating = [g for g, a in zip(grads, wide, strict=True) if a.dtype.kind == "f"]
    return [np.asarray(r, dtype) for r in (output, *floating)]


def check(name: str, got: Array, plain: Array, truth: Array, floor: float) -> None:
    """`got` is no further from `truth` than twice `plain`, the NumPy result in the same dtype."""
    assert got.shape == truth.shape, f"{name}: shape {got.shape}, expected {truth.shape}"
    np.testing.assert_array_equal(np.isnan(got), np.isnan(truth), f"{name}: NaN")
    finite = np.isfinite(truth)
    rest = ~finite & ~np.isnan(truth)
    np.testing.assert_array_equal(got[rest], truth[rest].astype(got.dtype), f"{name}: infinities")
    if not finite.any():
        return
    truth, got, plain = truth[finite], got[finite].astype(truth.dtype), plain[finite]
    error = np.abs(got - truth).max()
    usual = np.abs(plain.astype(truth.dtype) - truth)
    allowed = 2 * usual[np.isfinite(usual)].max(initial=0)
    allowed += floor * np.finfo(plain.dtype).eps * np.abs(truth).max()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
