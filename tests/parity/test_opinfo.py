"""PyTorch's own sample inputs (OpInfo) through grebe: values and gradients must agree."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")

from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402

import grebe  # noqa: E402
import grebe.nn.functional  # noqa: E402

SAMPLES = 40  # of each op: enough to reach every kind of argument

# Names that mean something else here or need a result that grebe does not promise (memory layout,
# complex numbers, random streams, sparse tensors).
SKIPPED = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted",
    "bernoulli", "multinomial", "normal", "rand_like", "randn_like", "randint_like", "randint",
    "randn", "rand", "uniform", "exponential", "cauchy", "geometric", "log_normal",
    "nn.functional.dropout", "nn.functional.dropout2d", "nn.functional.dropout3d",
    "nn.functional.dropout1d", "nn.functional.alpha_dropout", "nn.functional.feature_alpha_dropout",
    "nn.functional.feature_dropout",
    "zero_", "scatter_reduce-prod",
    "where", "einsum", "nn.functional.embedding", "nn.functional.embedding_bag",
    "linalg.pinv-singular", "polygamma",  # other argument orders
    "nn.functional.linear_cross_entropy",  # its options and input without batch are PyTorch's own
    "svd", "linalg.svd", "linalg.eigh",  # signs are free
    "linalg.eig", "linalg.eigvals",  # complex results
    "linalg.lstsq", "linalg.lstsq-grad_oriented",  # torch leaves out what its driver lacks
}  # fmt: skip


def _find(name: str):
    """grebe's function or method called `name`, or None."""
    target = grebe
    for part in name.split("."):
        try:
            target = getattr(target, part)
        except (AttributeError, ImportError):
            target = None
            break
    if target is None and "." not in name:
        target = getattr(grebe.Tensor, name, None)
    return target if callable(target) and not isinstance(target, type) else None


def _convert(value, leaves):
    if isinstance(value, torch.Tensor):
        tensor = grebe.tensor(value.detach().numpy())
        if value.requires_grad:
            tensor.requires_grad_()
            leaves.append((tensor, value))
        return tensor
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_convert(v, leaves) for v in value)
    if isinstance(value, torch.dtype):
        return getattr(grebe, str(value).removeprefix("torch."))
    return value


def _tensors(result):
    if isinstance(result, (torch.Tensor, grebe.Tensor)):
        return [result]
    if isinstance(result, (list, tuple)):
        return [t for r in result for t in _tensors(r)]
    return []


def _check(got, expected, what):
    got, expected = got.detach().numpy(), expected.detach().numpy()
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    assert got.dtype == expected.dtype, f"{what}: dtype {got.dtype}, expected {expected.dtype}"
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9, err_msg=what)


def _representable(op, sample) -> bool:
    """No complex or sparse tensors, no random results, no batch without channels."""
    tensors = _tensors([sample.input, *sample.args, *sample.kwargs.values()])
    if any(t.is_complex() or t.layout != torch.strided for t in tensors):
        return False
    if sample.kwargs.get("dropout_p"):
        return False  # random
    return op.name != "nn.functional.batch_norm" or sample.input.ndim > 1


def _run(op, function, sample):
    leaves = []
    input_, args = _convert(sample.input, leaves), _convert(tuple(sample.args), leaves)
    kwargs = {k: _convert(v, leaves) for k, v in sample.kwargs.items()}
    expected = _tensors(op.op(sample.input, *sample.args, **sample.kwargs))
    got = _tensors(function(input_, *args, **kwargs))
    assert len(got) == len(expected), f"{len(got)} results, expected {len(expected)}"
    for index, (g, e) in enumerate(zip(got, expected, strict=True)):
        _check(g, e, f"result {index}")
    pairs = [(g, e) for g, e in zip(got, expected, strict=True) if e.requires_grad]
    for e in [e for g, e in pairs if not g.requires_grad]:  # no graph: the gradient must be zero
        zeros = torch.autograd.grad(
            e.sum(), [t for _, t in leaves], retain_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        assert not any(z.any() for z in zeros)
    pairs = [p for p in pairs if p[0].requires_grad]
    if not pairs:
        return
    generator = np.random.default_rng(0)
    seeds = [generator.standard_normal(tuple(e.shape)).astype(g.dtype) for g, e in pairs]
    wanted = torch.autograd.grad(
        [e for _, e in pairs], [t for _, t in leaves],
        [torch.from_numpy(np.asarray(s)) for s in seeds],
        allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    found = grebe.autograd.grad(
        [g for g, _ in pairs], [t for t, _ in leaves], [grebe.tensor(s) for s in seeds],
        materialize_grads=True, allow_unused=True,
    )  # fmt: skip
    for index, (g, e) in enumerate(zip(found, wanted, strict=True)):
        _check(g, e, f"gradient {index}")


CASES = [
    pytest.param(op, function, id=f"{op.name}-{op.variant_test_name}".rstrip("-"))
    for op in op_db
    if op.name not in SKIPPED
    and f"{op.name}-{op.variant_test_name}" not in SKIPPED
    and torch.float64 in op.dtypes
    and (function := _find(op.name)) is not None
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("op", "function"), CASES)
def test_agrees_with_torch(op, function):
    samples = op.sample_inputs("cpu", torch.float64, requires_grad=op.supports_autograd)
    ran = 0
    for sample in samples:
        if ran >= SAMPLES:
            break
        if not _representable(op, sample):
            continue
        ran += 1
        _run(op, function, sample)
    if not ran:
        pytest.skip("no sample of this op fits")
