"""Attention and Transformer layers beside PyTorch's: outputs, weights and all gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import grebe

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
E, HEADS, BATCH = 12, 3, 4
pytestmark = pytest.mark.filterwarnings(
    "ignore:Support for mismatched", "ignore:enable_nested_tensor", "ignore:The PyTorch API of"
)


def close(got: Any, want: Any, tolerance: float, what: str) -> None:
    a, b = got.detach().numpy(), want.detach().numpy()
    size = max(np.abs(b).max(), 0.1)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size, err_msg=what)


def twins(name: str, dtype: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The same layer in both libraries, with the same weights, none of them at its start."""
    torch.manual_seed(0)
    b = getattr(torch.nn, name)(*args, dtype=getattr(torch, dtype), **kwargs)
    a = getattr(grebe.nn, name)(*args, dtype=getattr(grebe, dtype), **kwargs)
    assert str(a) == str(b)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    a.load_state_dict({k: grebe.tensor(v.numpy()) for k, v in b.state_dict().items()})
    return a, b


def draw(dtype: str, *shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def both(layers: tuple[Any, Any], arrays: list[Any], call: Any, dtype: str) -> None:
    """Compares call(lib, layer, tensors), which is one tensor or several, and all gradients."""
    found = []
    for lib, layer in zip((grebe, torch), layers, strict=True):
        leaves = [lib.tensor(a, requires_grad=True) for a in arrays]
        result = call(lib, layer, *leaves)
        results = [r for r in result if r is not None] if isinstance(result, tuple) else [result]
        loss = sum((r * lib.tensor(draw(dtype, tuple(r.shape))[0])).sum() for r in results)
        layer.zero_grad()
        loss.backward()
        found.append((results, leaves, dict(layer.named_parameters())))
    (ours, leaves, parameters), (theirs, their_leaves, their_parameters) = found
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        close(p, q, TOLERANCE[dtype], f"output {i}")
    for i, (p, q) in enumerate(zip(leaves, their_leaves, strict=True)):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            close(p.grad, q.grad, 3 * TOLERANCE[dtype], f"gradient of input {i}")
    assert parameters.keys() == their_parameters.keys()
    for name, p in parameters.items():
        close(p.grad, their_parameters[name].grad, 3 * TOLERANCE[dtype], f"gradient of {name}")


# ---- masks ----


def padding(lib: Any, kind: str, s: int, dtype: str) -> Any:
    """No row without keys: there PyTorch's weights are NaN."""
    if kind == "none":
        return None
    mask = np.arange(s) >= np.array([s, 1, s - 2, 3])[:, None]
    if kind == "scattered":
        mask = mask[:, ::-1].copy()
    if kind == "float":
        return lib.tensor(np.where(mask, -1.5, 0.25).astype(dtype))
    return lib.tensor(mask)


def attention_mask(lib: Any, kind: str, n: int, s: int, dtype: str) -> Any:
    rng = np.random.default_rng(1)
    shape = (BATCH * HEADS, n, s) if "heads" in kind else (n, s)
    if kind == "none":
        return None
    if kind == "causal":
        return lib.tensor(np.triu(np.full(shape, -np.inf), 1).astype(dtype))
    if "float" in kind:
        return lib.tensor(rng.standard_normal(shape).astype(dtype))
    mask = rng.random(shape) < 0.4
    mask[..., 0] = mask[..., -1] = False
    return lib.tensor(mask)


ATTENTION_MASKS = ["none", "bool", "float", "bool heads", "float heads", "causal"]
PADDING = ["none", "end", "scattered", "float"]


# ---- MultiheadAttention ----

OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "no bias": {"bias": False},
    "bias of keys": {"add_bias_kv": True},
    "zero": {"add_zero_attn": True},
    "bias and zero": {"add_bias_kv": True, "add_zero_attn": True, "bias": False},
    "sizes": {"kdim": 7, "vdim": 5},
    "size of values": {"vdim": 5, "bias": False, "add_bias_kv": True},
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "name, inputs",
    [
        (n, i)
        for n in OPTIONS
        for i in ("self", "memory", "three")
        if "size" not in n or i == "three"
    ],
)
def test_projections(
    name: str, inputs: str, batch_first: bool, need_weights: bool, dtype: str
) -> None:
    options = OPTIONS[name]
    layers = twins("MultiheadAttention", dtype, E, HEADS, batch_first=batch_first, **options)
    sizes = E, options.get("kdim", E), options.get("vdim", E)
    lengths = [5 if i == 0 or inputs == "self" else 7 for i in range(3)]
    shapes = [(BATCH, n, size) if batch_first else (n, BATCH, size)
              for n, size in zip(lengths, sizes, strict=True)]  # fmt: skip

    def call(lib: Any, layer: Any, q: Any, k: Any = None, v: Any = None) -> Any:
        k = q if k is None else k
        v = k if v is None else v
        mask = attention_mask(lib, "bool", lengths[0], lengths[1], dtype)
        pad = padding(lib, "end", lengths[1], dtype)
        return layer(q, k, v, pad, need_weights, mask, average_attn_weights=False)

    count = {"self": 1, "memory": 2, "three": 3}[inputs]
    both(layers, draw(dtype, *shapes[:count]), call, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize(
    "mask, pad",
    [
        (mask, pad)
        for mask in ATTENTION_MASKS
        for pad in PADDING
        if pad != "scattered" or mask in ("none", "float", "float heads")  # else rows without keys
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_masks(mask: str, pad: str, more: bool, need_weights: bool, dtype: str) -> None:
    layers = twins("MultiheadAttention", dtype, E, HEADS, add_bias_kv=more, add_zero_attn=more)

    def call(lib: Any, layer: Any, q: Any, k: Any) -> Any:
        masks = padding(lib, pad, 6, dtype), attention_mask(lib, mask, 9, 6, dtype)
        return layer(q, k, k, masks[0], need_weights, masks[1])

    both(layers, draw(dtype, (9, BATCH, E), (6, BATCH, E)), call, dtype)


@pytest.mark.parametrize("kind", ["float", "float heads"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_gradient_of_the_mask(kind: str, need_weights: bool) -> None:
    layers = twins("MultiheadAttention", "float64", E, HEADS)
    shapes = (6, BATCH, E), (BATCH, 6), (BATCH * HEADS, 6, 6) if "heads" in kind else (6, 6)

    def call(lib: Any, layer: Any, x: Any, pad: Any, mask: Any) -> Any:
        return layer(x, x, x, pad, need_weights, mask)

    both(layers, draw("float64", *shapes), call, "float64")


@pytest.mark.parametrize("pad", ["none", "end"])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("s", [5, 6, 8])
def test_causal_hint(s: int, need_weights: bool, pad: str) -> None:
    layers = twins("MultiheadAttention", "float64", E, HEADS)

    def call(lib: Any, layer: Any, q: Any, k: Any) -> Any:
        mask = attention_mask(lib, "causal", 6, s, "float64")
        return layer(q, k, k, padding(lib, pad, s, "float64"), need_weights, mask, is_causal=True)

    both(layers, draw("float64", (6, BATCH, E), (s, BATCH, E)), call, "float64")


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_one_sequence(batch_first: bool, average: bool, need_weights: bool) -> None:
    layers = twins("MultiheadAttention", "float64", E, HEADS, batch_first=batch_first)

    def call(lib: Any, layer: Any, x: Any) -> Any:
        pad = lib.tensor(np.arange(5) >= 4)
        return layer(x, x, x, pad, need_weights, average_attn_weights=average)

    both(layers, draw("float64", (5, E)), call, "float64")


@pytest.mark.parametrize("options", OPTIONS)
def test_initial_values(options: str) -> None:
    """The same distributions: zero where PyTorch has zeros, else the same mean size."""
    theirs = torch.nn.MultiheadAttention(64, 4, **OPTIONS[options]).state_dict()
    ours = grebe.nn.MultiheadAttention(64, 4, **OPTIONS[options]).state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        a, b = np.abs(ours[key].numpy()), np.abs(value.numpy())
        assert a.shape == b.shape
        if a.size < 100 or not b.any():
            assert a.any() == b.any()
        else:
            np.testing.assert_allclose(a.mean(), b.mean(), rtol=0.1)
            np.testing.assert_allclose(a.max(), b.max(), rtol=0.05)


# ---- layers and stacks ----

LAYERS: dict[str, dict[str, Any]] = {
    "": {},
    "norm first": {"norm_first": True, "activation": "gelu"},
    "no bias": {"bias": False, "batch_first": True, "activation": "gelu"},
    "norm first, batch first": {"norm_first": True, "batch_first": True, "layer_norm_eps": 1e-3},
}


def shape(n: int, batch_first: bool) -> tuple[int, ...]:
    return (BATCH, n, E) if batch_first else (n, BATCH, E)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masks", ["none none", "causal end", "bool end", "float none"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore")
def test_encoder_layer(name: str, masks: str, training: bool, dtype: str) -> None:
    layers = twins("TransformerEncoderLayer", dtype, E, HEADS, 20, 0.0, **LAYERS[name])
    kind, pad = masks.split()

    def call(lib: Any, layer: Any, x: Any) -> Any:
        layer.train(training)
        mask = attention_mask(lib, kind, 7, 7, dtype)
        return layer(x, mask, padding(lib, pad, 7, dtype), is_causal=kind == "causal")

    both(layers, draw(dtype, shape(7, "batch_first" in LAYERS[name])), call, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masks", ["none none", "causal end", "bool scattered", "float float"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore")
def test_decoder_layer(name: str, masks: str, dtype: str) -> None:
    layers = twins("TransformerDecoderLayer", dtype, E, HEADS, 20, 0.0, **LAYERS[name])
    kind, pad = masks.split()

    def call(lib: Any, layer: Any, x: Any, memory: Any) -> Any:
        return layer(
            x, memory, attention_mask(lib, kind, 7, 7, dtype),
            None if pad == "scattered" else attention_mask(lib, "bool", 7, 5, dtype),
            None, padding(lib, pad, 5, dtype), tgt_is_causal=kind == "causal",
        )  # fmt: skip

    batch_first = LAYERS[name].get("batch_first", False)
    both(layers, draw(dtype, shape(7, batch_first), shape(5, batch_first)), call, dtype)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("tgt", ["none", "causal", "bool", "causal bool"])
@pytest.mark.filterwarnings("ignore")
def test_transformer(tgt: str, name: str, training: bool) -> None:
    sizes = (E, HEADS, 2, 3, 20, 0.0)
    options = dict(LAYERS[name])
    options.setdefault("activation", "relu")
    layers = twins("Transformer", "float64", *sizes, **options)

    def call(lib: Any, layer: Any, src: Any, target: Any) -> Any:
        layer.train(training)
        mask = attention_mask(lib, tgt, 5, 5, "float64")
        if tgt == "causal bool":
            mask = lib.tensor(np.triu(np.ones((5, 5), bool), 1))
        pad = padding(lib, "end", 7, "float64")
        return layer(
            src, target, tgt_mask=mask, src_key_padding_mask=pad, memory_key_padding_mask=pad
        )

    batch_first = options.get("batch_first", False)
    both(layers, draw("float64", shape(7, batch_first), shape(5, batch_first)), call, "float64")


def test_one_sequence_through_the_transformer() -> None:
    layers = twins("Transformer", "float64", E, HEADS, 1, 1, 20, 0.0)

    def call(lib: Any, layer: Any, src: Any, tgt: Any) -> Any:
        mask = layer.generate_square_subsequent_mask(5, dtype=lib.float64)
        return layer(src, tgt, tgt_mask=mask)

    both(layers, draw("float64", (7, E), (5, E)), call, "float64")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bool"])
def test_causal_mask(dtype: str) -> None:
    masks = [lib.nn.Transformer.generate_square_subsequent_mask(5, dtype=getattr(lib, dtype))
             for lib in (grebe, torch)]  # fmt: skip
    assert str(masks[0].dtype).endswith(str(masks[1].dtype).removeprefix("torch."))
    np.testing.assert_array_equal(masks[0].numpy(), masks[1].numpy())


def test_initial_transformer() -> None:
    ours, theirs = (lib.nn.Transformer(64, 4, 1, 1, 128).state_dict() for lib in (grebe, torch))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        a, b = np.abs(ours[key].numpy()), np.abs(value.numpy())
        assert a.any() == b.any(), key
        if a.size > 1000:
            np.testing.assert_allclose(a.mean(), b.mean(), rtol=0.05, err_msg=key)
