"""CUDA kernels (emulated) against the CPU's, on options and dtypes that test_ops.py leaves out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import check
import grebe
from grebe import nn
from grebe.nn.attention import ALiBi, SoftCap

pytestmark = pytest.mark.usefixtures("cuda_device")
F = nn.functional


@pytest.fixture(params=[(True, 0), (True, 1), (False, 0), (False, 2)], ids=str)
def mode(request: pytest.FixtureRequest) -> None:
    """Lazy or eager copies, threads in order or shuffled."""
    check.set_emulator(*request.param)


def compare(call: Callable[..., Any], *arrays: Any, tolerance: float = 2e-5) -> None:
    """`call` of tensors on both devices: results and gradients of the floating ones agree."""
    results = []
    for device in ("cpu", "cuda"):
        grebe.manual_seed(3)
        leaves = [grebe.tensor(a, device=device) for a in arrays]
        leaves = [t.requires_grad_() if t.is_floating_point() else t for t in leaves]
        y = call(*leaves)
        assert y.device.type == device
        found = [y.detach()]
        if y.requires_grad:
            weights = np.random.default_rng(1).standard_normal(y.shape)
            y.backward(grebe.tensor(weights, dtype=y.dtype, device=device))
            found += [t.grad for t in leaves if t.requires_grad and t.grad is not None]
        assert all(t.device.type == device for t in found)
        results.append([t.cpu().double().numpy() for t in found])
    assert len(results[0]) == len(results[1])
    for cpu, cuda in zip(*results, strict=True):
        scale = max(np.abs(cpu[np.isfinite(cpu)]).max(initial=0), 1e-30)
        np.testing.assert_allclose(cuda, cpu, rtol=tolerance, atol=tolerance * scale)


def noise(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- products: every way and edge, in every mode ----


@pytest.mark.parametrize("layout", ["NN", "NT", "TN", "TT"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_products_on_tensor_cores(layout: str, dtype: str, mode: Any) -> None:
    check_product(layout, dtype, 136, 72, 200)


def test_tf32_on_request() -> None:
    a, b = noise(160, 96), noise(96, 136, seed=1)
    x, w = noise(2, 16, 9, 9), noise(32, 16, 3, 3, seed=1)
    truth = [a.astype(np.float64) @ b, F.conv2d(*map(grebe.tensor, (x, w))).numpy()]

    def errors() -> list[float]:
        left, right, images, weight = (grebe.tensor(v).cuda() for v in (a, b, x, w))
        got = [left @ right, F.conv2d(images, weight)]
        return [
            float(np.abs(y.cpu().double().numpy() - t).max() / np.abs(t).max())
            for y, t in zip(got, truth, strict=True)
        ]

    try:
        assert max(errors()) < 1e-6
        grebe.set_float32_matmul_precision("high")
        assert grebe.get_float32_matmul_precision() == "high"
        assert all(1e-5 < e < 2e-3 for e in errors())
    finally:
        grebe.set_float32_matmul_precision("highest")
    assert max(errors()) < 1e-6
    with pytest.raises(ValueError, match="precision must be"):
        grebe.set_float32_matmul_precision("low")


@pytest.mark.parametrize("layout", ["NN", "NT", "TN", "TT"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_products_of_clusters(layout: str, dtype: str) -> None:
    check.set_emulator(lazy=True, seed=0 if dtype == "float16" else 3)
    check_product(layout, dtype, 1288, 136, 2600)


def check_product(layout: str, dtype: str, m: int, k: int, n: int) -> None:
    a, b = noise(m, k), noise(k, n, seed=1)
    wanted = getattr(grebe, dtype)
    left = grebe.tensor(a if layout[0] == "N" else a.T.copy()).to(wanted).cuda()
    right = grebe.tensor(b if layout[1] == "N" else b.T.copy()).to(wanted).cuda()
    got = (left if layout[0] == "N" else left.T) @ (right if layout[1] == "N" else right.T)
    rounded = [t.cpu().double().numpy() for t in (left, right)]
    truth = (rounded[0] if layout[0] == "N" else rounded[0].T) @ (
        rounded[1] if layout[1] == "N" else rounded[1].T
    )
    error = np.abs(got.cpu().double().numpy() - truth).max() / np.abs(truth).max()
    assert error < {"float32": 1e-6, "bfloat16": 5e-3, "float16": 1e-3}[dtype]


@pytest.mark.parametrize(
    "a, b",
    [
        ((65, 33), (33, 67)), ((130, 40), (40, 129)), ((1, 700), (700, 40)), ((40, 700), (700, 1)),
        ((32, 1100), (1100, 48)), ((3, 2, 9, 5), (2, 5, 7)), ((5,), (5, 3)), ((70000, 2), (2, 3)),
        ((2, 0), (0, 3)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products(a: tuple[int, ...], b: tuple[int, ...], dtype: Any) -> None:
    compare(grebe.matmul, noise(*a, dtype=dtype), noise(*b, seed=1, dtype=dtype))


def test_products_keep_infinities() -> None:
    a = noise(64, 64)
    a[3, 5], a[7, 9] = np.inf, np.nan
    got = (grebe.tensor(a).cuda() @ grebe.eye(64, device="cuda")).cpu().numpy()
    assert np.isnan(got[7]).all() and np.isnan(got[3, :5]).all() and got[3, 5] == np.inf


# ---- elementwise and reductions ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_elementwise(dtype: str) -> None:
    x = grebe.tensor(noise(33, 7)).to(getattr(grebe, dtype)).cuda()
    for call in (grebe.tanh, grebe.exp, lambda t: t + t, lambda t: t * 2, lambda t: t + t[0]):
        y = call(x)
        assert y.dtype == x.dtype and y.is_cuda
        truth = call(x.cpu().float()).numpy()
        np.testing.assert_allclose(y.cpu().float().numpy(), truth, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dim", [None, 0, 1, 2, (0, 2), (1, 2)])
@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin", "var"])
def test_reductions(name: str, dim: Any) -> None:
    options = {} if dim is None else {"dim": dim}
    compare(lambda x: getattr(grebe, name)(x, **options), noise(5, 130, 37))
    compare(lambda x: getattr(grebe, name)(x.permute(2, 0, 1), **options), noise(5, 130, 37))


def test_long_reductions_are_cut() -> None:
    compare(grebe.sum, noise(3, 50000))
    compare(lambda x: x.sum(1), noise(2, 60000))
    compare(lambda x: x.sum(0), noise(60000, 3))
    compare(lambda x: x.var(), noise(20000) + 1000)


def test_arg_extrema() -> None:
    x = noise(6, 70)
    x[1, 3] = x[1, 60] = 9
    x[2, 5] = np.nan
    for name in ("argmax", "argmin"):
        for dim in (0, 1):
            a, b = (getattr(grebe.tensor(x, device=d), name)(dim).cpu() for d in ("cpu", "cuda"))
            np.testing.assert_array_equal(a.numpy(), b.numpy())


# ---- attention ----

QKV = [(2, 4, 21, 8), (2, 4, 37, 8), (2, 4, 37, 8)]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"window": (3, 5)},
    "scale": {"scale": 0.7},
    "soft cap": {"score_mod": SoftCap(2.0)},
    "offset": {"is_causal": True, "causal_offset": 16},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_attention(name: str) -> None:
    arrays = [noise(*s, seed=i) for i, s in enumerate(QKV)]
    compare(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **OPTIONS[name]), *arrays)


def test_attention_of_lengths_and_slopes() -> None:
    def call(q: grebe.Tensor, k: grebe.Tensor, v: grebe.Tensor) -> grebe.Tensor:
        lengths = grebe.tensor([0, 30], device=q.device)
        slopes = ALiBi(ALiBi.of_heads(4).slopes.to(q.device))
        return F.scaled_dot_product_attention(q, k, v, key_lengths=lengths, score_mod=slopes)

    compare(call, *[noise(*s, seed=i) for i, s in enumerate(QKV)])


@pytest.mark.parametrize("shape", [(2, 4, 21, 37), (2, 1, 21, 37), (1, 4, 1, 37), (21, 37)])
def test_attention_with_an_added_mask(shape: tuple[int, ...]) -> None:
    arrays = [noise(*s, seed=i) for i, s in enumerate(QKV)]
    compare(
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
        *arrays,
        noise(*shape, seed=5),
    )


def test_attention_that_sees_nothing() -> None:
    mask = np.random.default_rng(0).random((2, 1, 21, 37)) < 0.7
    mask[0, 0, 4] = False
    arrays = [noise(*s, seed=i) for i, s in enumerate(QKV)]
    compare(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), *arrays, mask)
    out = F.scaled_dot_product_attention(*(grebe.tensor(a).cuda() for a in arrays),
                                         grebe.tensor(mask).cuda())  # fmt: skip
    assert (out[0, :, 4] == 0).all()


def test_attention_drops_the_same() -> None:
    arrays = [noise(*s, seed=i) for i, s in enumerate(QKV)]
    compare(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.3), *arrays)


@pytest.mark.parametrize("columns", [1, 17, 256])
def test_attention_of_grouped_heads(columns: int) -> None:
    q, k, v = noise(1, 6, 5, 24), noise(1, 2, 34, 24, seed=1), noise(1, 2, 34, columns, seed=2)
    compare(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), q, k, v)


def test_attention_in_bfloat16() -> None:
    arrays = [noise(*s, seed=i) for i, s in enumerate(QKV)]
    compare(
        lambda q, k, v: F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()),
        *arrays,
        tolerance=3e-2,
    )


# ---- normalisation, pooling, convolution, embedding: layouts and options ----


@pytest.mark.parametrize("last", [False, True])
def test_images_channels_last(last: bool) -> None:
    def formatted(x: grebe.Tensor) -> grebe.Tensor:
        return x.contiguous(memory_format=grebe.channels_last) if last else x

    x, w = noise(3, 12, 9, 7), noise(10, 12, 3, 3, seed=1)
    compare(lambda x, w: F.conv2d(formatted(x), w, padding=1, stride=2), x, w)
    compare(lambda x: F.max_pool2d(formatted(x), 3, 2, 1), x)
    compare(lambda x: F.avg_pool2d(formatted(x), 2, count_include_pad=False), x)
    compare(lambda x: F.adaptive_avg_pool2d(formatted(x), (4, 3)), x)
    compare(lambda x: F.adaptive_max_pool2d(formatted(x), (4, 3)), x)
    compare(lambda x: F.batch_norm(formatted(x), None, None, training=True), x)
    compare(lambda x, w, b: F.group_norm(formatted(x), 4, w, b), x, noise(12), noise(12, seed=2))


@pytest.mark.parametrize("groups, outputs", [(1, 70), (12, 12), (12, 24), (4, 80), (1, 5)])
def test_convolution_groups(groups: int, outputs: int) -> None:
    x, w = noise(2, 12, 8, 9), noise(outputs, 12 // groups, 3, 2, seed=1)
    compare(lambda x, w, b: F.conv2d(x, w, b, (1, 2), (2, 1), (2, 1), groups), x, w, noise(outputs))


def test_convolution_with_cut_pixels() -> None:
    compare(lambda x, w: F.conv2d(x, w), noise(5, 9, 18, 17), noise(9, 9, 2, 2, seed=1))


def test_running_statistics() -> None:
    states = []
    for device in ("cpu", "cuda"):
        layer = nn.BatchNorm2d(5).to(device)
        for i in range(3):
            layer(grebe.tensor(noise(4, 5, 3, 3, seed=i), device=device))
        layer.eval()
        y = layer(grebe.tensor(noise(4, 5, 3, 3), device=device))
        states.append(
            [t.detach().cpu().numpy() for t in (layer.running_mean, layer.running_var, y)]
        )
    for cpu, cuda in zip(*states, strict=True):
        np.testing.assert_allclose(cuda, cpu, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 4000])
def test_embedding_gradients(rows: int) -> None:
    index = np.random.default_rng(0).integers(0, rows, (40, 30))
    compare(lambda w: F.embedding(grebe.tensor(index, device=w.device), w), noise(rows, 9))


@pytest.mark.parametrize("mode_name", ["sum", "mean", "max"])
def test_embedding_bags(mode_name: str) -> None:
    index = np.random.default_rng(0).integers(0, 50, 40)
    offsets = np.array([0, 3, 3, 20])

    def call(w: grebe.Tensor) -> grebe.Tensor:
        i, o = (grebe.tensor(a, device=w.device) for a in (index, offsets))
        return F.embedding_bag(i, w, o, mode=mode_name)

    compare(call, noise(50, 5))


def test_topk() -> None:
    x = noise(4, 300)
    x[0, 5] = x[0, 9]
    x[1, 7] = np.nan
    for largest in (True, False):
        found = [grebe.topk(grebe.tensor(x, device=d), 7, largest=largest) for d in ("cpu", "cuda")]
        np.testing.assert_array_equal(found[0].values.numpy(), found[1].values.cpu().numpy())
        np.testing.assert_array_equal(found[0].indices.numpy(), found[1].indices.cpu().numpy())


def test_labels_are_checked() -> None:
    x = grebe.randn(4, 3, device="cuda")
    with pytest.raises(IndexError, match="Target 7"):
        F.cross_entropy(x, grebe.tensor([0, 1, 7, 2], device="cuda"))


# ---- recurrent layers ----


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("capability", [80, 90], ids=["steps", "clusters"])
def test_recurrent_layers(kind: str, capability: int) -> None:
    check.set_emulator(True, 1, capability)
    for inputs, size, options in [
        (3, 5, {}),
        (2, 17, {"bidirectional": True, "num_layers": 2}),
        (4, 33, {"batch_first": True, "bias": False}),
        (3, 9, {"nonlinearity": "relu"} if kind == "RNN" else {}),
        (3, 12, {"proj_size": 5} if kind == "LSTM" else {}),
    ]:
        layer = getattr(nn, kind)(inputs, size, **options)
        copies = {"cpu": layer, "cuda": copy.deepcopy(layer).cuda()}

        def run(x: Any, copies: Any = copies) -> Any:
            y, last = copies[x.device.type](x)
            states = last if isinstance(last, tuple) else (last,)
            return grebe.cat([y.flatten(), *(s.flatten() for s in states)])

        compare(run, noise(4, 9, inputs))
        for cpu, cuda in zip(*(m.parameters() for m in copies.values()), strict=True):
            np.testing.assert_allclose(cuda.grad.cpu(), cpu.grad, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_recurrent_layers_over_packed_sequences(kind: str) -> None:
    layer = getattr(nn, kind)(3, 6, bidirectional=True)
    copies = {"cpu": layer, "cuda": copy.deepcopy(layer).cuda()}
    utils = nn.utils.rnn

    def run(x: Any) -> Any:
        packed = utils.pack_padded_sequence(x, [2, 5, 1, 5], enforce_sorted=False)
        y, last = copies[x.device.type](packed)
        padded, lengths = utils.pad_packed_sequence(y, total_length=6)
        assert lengths.tolist() == [2, 5, 1, 5]
        states = last if isinstance(last, tuple) else (last,)
        return grebe.cat([padded.flatten(), *(s.flatten() for s in states)])

    compare(run, noise(5, 4, 3))


@pytest.mark.parametrize("cell", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("rows", [1, 70])
def test_recurrent_cells(cell: str, rows: int) -> None:
    module = getattr(nn, cell)(3, 7)
    copies = {"cpu": module, "cuda": copy.deepcopy(module).cuda()}

    def run(x: Any, h: Any, c: Any) -> Any:
        state = copies[x.device.type](x, (h, c) if cell == "LSTMCell" else h)
        return grebe.cat(list(state)) if cell == "LSTMCell" else state + 0 * c

    compare(run, noise(rows, 3), noise(rows, 7, seed=1), noise(rows, 7, seed=2))
