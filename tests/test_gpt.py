"""GPT: Hugging Face's weights against NumPy, the cache, sampling, learning."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import grebe
from grebe.models import GPT, GPTConfig
from grebe.models.sampling import pick
from grebe.serialization import load_file, save_file

Array = np.ndarray[Any, np.dtype[Any]]
CONFIG = GPTConfig(17, 12, 16, 2, 4, dropout=0.0)


def gpt(config: GPTConfig = CONFIG, scale: float = 10.0) -> GPT:
    """With weights so large that different positions and tokens make a difference."""
    grebe.manual_seed(3)
    net = GPT(config).eval()
    with grebe.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return net


def tokens(*shape: int) -> Array:
    return np.random.default_rng(0).integers(0, CONFIG.vocab_size, shape)


# ---- Hugging Face's files ----


def gpt2_tensors(prefix: str) -> dict[str, Array]:
    """Random weights under the names, and in the layout, of GPT-2's files."""
    rng, e = np.random.default_rng(1), CONFIG.n_embd
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (17, e), "wpe.weight": (12, e)}
    for i in range(CONFIG.n_layer):
        for norm in ("ln_1", "ln_2"):
            shapes[f"h.{i}.{norm}.weight"] = shapes[f"h.{i}.{norm}.bias"] = (e,)
        for name, n, m in (("attn.c_attn", e, 3 * e), ("attn.c_proj", e, e),
                           ("mlp.c_fc", e, 4 * e), ("mlp.c_proj", 4 * e, e)):  # fmt: skip
            shapes[f"h.{i}.{name}.weight"], shapes[f"h.{i}.{name}.bias"] = (n, m), (m,)
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (e,)
    return {prefix + name: rng.standard_normal(shape).astype(np.float32) * 0.4
            for name, shape in shapes.items()}  # fmt: skip


def gpt2_forward(w: dict[str, Array], x: Array) -> Array:
    """The logits as the paper has them, in float64."""
    w = {name: value.astype(np.float64) for name, value in w.items()}
    (batch, n), e, heads = x.shape, CONFIG.n_embd, CONFIG.n_head

    def norm(y: Array, name: str) -> Array:
        y = y - y.mean(-1, keepdims=True)
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
        return y * w[name + ".weight"] + w[name + ".bias"]

    def conv1d(y: Array, name: str) -> Array:
        return y @ w[name + ".weight"] + w[name + ".bias"]

    h = w["wte.weight"][x] + w["wpe.weight"][:n]
    for i in range(CONFIG.n_layer):
        qkv = conv1d(norm(h, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (part.reshape(batch, n, heads, -1).swapaxes(1, 2) for part in np.split(qkv, 3, 2))
        scores = q @ k.swapaxes(2, 3) / np.sqrt(e // heads)
        scores[:, :, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        y = (p / p.sum(-1, keepdims=True)) @ v
        h = h + conv1d(y.swapaxes(1, 2).reshape(batch, n, e), f"h.{i}.attn.c_proj")
        a = conv1d(norm(h, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        a = 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
        h = h + conv1d(a, f"h.{i}.mlp.c_proj")
    return norm(h, "ln_f") @ w["wte.weight"].T


def write(folder: Path, tensors: dict[str, Array], **changes: Any) -> None:
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "gpt2", "activation_function": "gelu_new", "vocab_size": 17,
        "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 4, "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.1, "n_inner": None, "architectures": ["GPT2LMHeadModel"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_hugging_face_weights(prefix: str, tmp_path: Path) -> None:
    tensors = gpt2_tensors(prefix)
    extra = {prefix + "h.0.attn.bias": np.ones((1, 1, 12, 12), np.float32)}
    if prefix:
        extra["lm_head.weight"] = tensors["transformer.wte.weight"]
    write(tmp_path, {**tensors, **extra})
    net = GPT.from_pretrained(tmp_path)
    assert not net.training
    assert net.config == GPTConfig(17, 12, 16, 2, 4)
    x = tokens(3, 12)
    expected = gpt2_forward({n.removeprefix(prefix): v for n, v in tensors.items()}, x)
    got = net(grebe.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


def test_wrong_hugging_face_files(tmp_path: Path) -> None:
    tensors = gpt2_tensors("")
    write(tmp_path, tensors, model_type="bert")
    with pytest.raises(ValueError, match=r"model_type 'gpt2'.*'bert'"):
        GPT.from_pretrained(tmp_path)
    write(tmp_path, {n: v for n, v in tensors.items() if n != "h.1.mlp.c_fc.bias"})
    with pytest.raises(RuntimeError, match=r"h\.1\.linear1\.bias"):
        GPT.from_pretrained(tmp_path)
    write(tmp_path, {**tensors, "lm_head.weight": tensors["wte.weight"] + 1})
    with pytest.raises(ValueError, match=r"lm_head\.weight to be wte\.weight"):
        GPT.from_pretrained(tmp_path)
    write(tmp_path, tensors, n_embd=32)
    with pytest.raises(RuntimeError, match=r"wte\.weight"):
        GPT.from_pretrained(tmp_path)


def test_state_dict_round_trip(tmp_path: Path) -> None:
    net, other = gpt(), GPT(CONFIG).eval()
    save_file(net.state_dict(), tmp_path / "w")
    other.load_state_dict(load_file(tmp_path / "w"))
    x = grebe.from_numpy(tokens(2, 7))
    assert np.array_equal(net(x).detach(), other(x).detach())


# ---- cache ----


@pytest.mark.parametrize("parts", [[12], [1] * 12, [5, 1, 1, 5], [4, 8]])
def test_cache_equals_the_whole_text(parts: list[int]) -> None:
    net, x = gpt(), tokens(3, 12)
    whole = net(grebe.from_numpy(x)).detach().numpy()
    cache, found = net.new_cache(3), []
    with grebe.no_grad():
        for part in np.split(x, np.cumsum(parts)[:-1], axis=1):
            found.append(net(grebe.from_numpy(part.copy()), cache).numpy())
    np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=1e-5)
    with pytest.raises(ValueError, match="expected 1 to 0 more tokens, got 1"):
        net(grebe.from_numpy(x[:, :1].copy()), cache)


def test_generate_is_the_argmax_of_the_whole_text() -> None:
    net, known = gpt(), [1, 2, 3]
    made = net.generate(known, 9)
    for token in made:
        logits = net(grebe.tensor([known]))[0, -1]
        assert int(logits.argmax()) == token
        known.append(token)
    assert len(set(made)) > 1
    assert net.generate([1, 2, 3], 40)[:9] == made  # goes on when the positions are used up
    assert len(net.generate([1] * 30, 2)) == 2
    assert net.generate([1], 0) == []
    assert net.generate([4], 30, 0.9, seed=5) == net.generate([4], 30, 0.9, seed=5)
    assert net.generate([4], 30, 0.9, top_k=1) == net.generate([4], 30)
    assert net.generate([4], 30, 0.9, top_p=1e-6) == net.generate([4], 30)
    net.train()
    net.generate([4], 3)
    assert net.training


def test_wrong_arguments() -> None:
    net = gpt()
    with pytest.raises(ValueError, match="prefix of at least one token"):
        net.generate([], 3)
    for options, message in (
        ({"temperature": -1.0}, "temperature"), ({"top_k": 0}, "top_k"), ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"), ({"length": -1}, "length"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            net.generate([1], **{"length": 3, **options})
    with pytest.raises(ValueError, match="expected 1 to 12 more tokens, got 13"):
        net(grebe.zeros(1, 13, dtype=grebe.int64))
    with pytest.raises(ValueError, match=r"expected tokens \[B, T\]"):
        net(grebe.zeros(3, dtype=grebe.int64))
    with pytest.raises(IndexError):
        net(grebe.tensor([[17]]))
    with pytest.raises(ValueError, match="call eval"):
        net.train()(grebe.tensor([[1]]), net.new_cache())
    with pytest.raises(ValueError, match="n_embd must be divisible by n_head"):
        GPTConfig(n_embd=10, n_head=3)
    with pytest.raises(ValueError, match="n_layer must be at least 1"):
        GPTConfig(n_layer=0)


# ---- sampling ----


def counts(logits: Array, n: int = 4000, **options: Any) -> Array:
    rng = np.random.default_rng(0)
    return np.bincount([pick(logits, 1.0, rng, **options) for _ in range(n)], minlength=len(logits))


def test_top_k_and_top_p() -> None:
    p = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    logits = np.log(p).astype(np.float32)
    for options, kept in (
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.5}, [1, 3]),
        ({"top_p": 0.75}, [1, 3, 4]),
        ({"top_k": 3, "top_p": 0.4}, [1]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
    ):
        found = counts(logits, **options)
        expected = np.zeros(5)
        expected[kept] = p[kept] / p[kept].sum()
        np.testing.assert_allclose(found / found.sum(), expected, atol=0.03)
        assert not found[expected == 0].any()


def test_top_p_of_many_equal_tokens() -> None:
    found = counts(np.zeros(1000, np.float32), 20000, top_p=0.6)
    assert (found > 0).sum() == 600
    assert (counts(np.zeros(1000, np.float32), 5000, top_k=300) > 0).sum() == 300


# ---- learning ----


def test_initial_weights() -> None:
    net = GPT(GPTConfig(50, 16, 64, 8, 4))
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert not parameter.detach().numpy().any()
        elif parameter.ndim > 1:
            scaled = name.endswith(("out_proj.weight", "linear2.weight"))
            assert parameter.detach().numpy().std() == pytest.approx(
                0.005 if scaled else 0.02, rel=0.15
            )
    x = tokens(4, 16)
    loss = net.loss(grebe.from_numpy(x), grebe.from_numpy(x[::-1, ::-1].copy()))
    assert loss.item() == pytest.approx(math.log(50), abs=0.1)


def test_learns_to_count() -> None:
    grebe.manual_seed(0)
    net = GPT(GPTConfig(10, 16, 32, 2, 4, dropout=0.0))
    optimizer = grebe.optim.AdamW(net.parameters(), lr=0.01)
    rng = np.random.default_rng(0)
    for _ in range(60):
        x = (rng.integers(0, 10, (16, 1)) + np.arange(17)) % 10
        loss = net.loss(grebe.from_numpy(x[:, :-1].copy()), grebe.from_numpy(x[:, 1:].copy()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert net.generate([3, 4], 8) == [5, 6, 7, 8, 9, 0, 1, 2]
