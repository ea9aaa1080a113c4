"""Convolution beyond the cases of test_ops.py: formats, second gradients, variants, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import grebe
from grebe.autograd import gradcheck, gradgradcheck
from grebe.nn.grad import (
    conv1d_input,
    conv1d_weight,
    conv2d_input,
    conv2d_weight,
    conv3d_input,
    conv3d_weight,
)
from grebe.ops import conv_arrays
from grebe.ops.conv import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from reference import REFERENCES

Array = np.ndarray[Any, np.dtype[Any]]


def rand(*shape: int, dtype: Any = np.float64) -> Any:
    return grebe.from_numpy(np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype))


def channels_last(x: Any) -> Any:
    last = np.ascontiguousarray(np.moveaxis(x.numpy(), 1, -1))
    return grebe.from_numpy(last).permute(0, x.ndim - 1, *range(1, x.ndim - 1))


SHAPES = [
    ((3, 5, 9, 8), (7, 5, 3, 3), {"padding": 1}),
    ((2, 16, 7, 40), (4, 8, 3, 2), {"stride": (2, 1), "groups": 2}),
    ((2, 3, 12, 12), (40, 3, 3, 3), {"stride": 3, "dilation": 2, "padding": (2, 3)}),
    ((2, 70, 9, 8), (70, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 70}),
    ((2, 5, 9, 20), (15, 1, 3, 3), {"padding": 1, "groups": 5}),
    ((12, 40, 8, 8), (133, 40, 1, 1), {}),
    ((3, 33, 1, 1), (40, 33, 1, 1), {}),
    ((9, 33, 4, 7), (40, 33, 1, 1), {}),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("x", "w", "kwargs"), SHAPES)
def test_channels_last_keeps_its_format_and_the_values(
    x: Any, w: Any, kwargs: Any, dtype: Any
) -> None:
    input, weight = rand(*x, dtype=dtype), rand(*w, dtype=dtype)
    plain = [input.clone().requires_grad_(), weight.clone().requires_grad_()]
    last = [channels_last(input).requires_grad_(), weight.clone().requires_grad_()]
    y, z = conv2d(*plain, **kwargs), conv2d(*last, **kwargs)
    assert z.array.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(y.detach().numpy(), z.detach().numpy())
    grad = rand(*y.shape, dtype=dtype)
    y.backward(grad)
    z.backward(channels_last(grad))
    np.testing.assert_array_equal(plain[0].grad.numpy(), last[0].grad.numpy())
    want = plain[1].grad.numpy()  # a sum over pixels, whose order is the memory's
    tolerance = 32 * np.finfo(dtype).eps * np.abs(want).max()
    np.testing.assert_allclose(last[1].grad.numpy(), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("x", "w", "kwargs"),
    [
        ((2, 2, 4, 5), (3, 2, 2, 3), {"padding": 1}),
        ((1, 4, 5, 5), (2, 2, 2, 2), {"stride": 2, "groups": 2}),
        ((2, 1, 6, 6), (2, 1, 2, 2), {"dilation": 2, "stride": (2, 1), "padding": (0, 1)}),
    ],
)
def test_first_and_second_gradients(x: Any, w: Any, kwargs: Any) -> None:
    inputs = [t.requires_grad_() for t in (rand(*x), rand(*w), rand(w[0]))]

    def f(a: Any, b: Any, c: Any) -> Any:
        return conv2d(a, b, c, **kwargs)

    assert gradcheck(f, inputs) and gradgradcheck(f, inputs)


def test_input_and_weight_gradient_are_closed() -> None:
    x, w = rand(2, 2, 5, 6).requires_grad_(), rand(3, 2, 3, 2).requires_grad_()
    kwargs: dict[str, Any] = {"stride": (1, 2), "padding": (0, 1)}
    dy = rand(*conv2d(x, w, **kwargs).shape).requires_grad_()
    assert gradgradcheck(lambda a, b: conv2d_input((2, 2, 5, 6), a, b, **kwargs), [w, dy])
    assert gradgradcheck(lambda a, b: conv2d_weight(a, (3, 2, 3, 2), b, **kwargs), [x, dy])
    y = conv2d(x, w, **kwargs)
    gx, gw = grebe.autograd.grad(y, (x, w), dy)
    np.testing.assert_allclose(
        conv2d_input(x.shape, w, dy, **kwargs).detach().numpy(), gx.numpy(), rtol=1e-12
    )
    np.testing.assert_allclose(
        conv2d_weight(x, w.shape, dy, **kwargs).detach().numpy(), gw.numpy(), rtol=1e-12
    )


def test_transposed_is_the_adjoint() -> None:
    # <conv_transpose(x), z> = <x, conv(z)> for all x, z.
    kwargs: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": (1, 2), "groups": 2}
    x, w = rand(2, 6, 4, 5), rand(6, 2, 3, 2)
    y = conv_transpose2d(x, w, output_padding=1, **kwargs)
    assert y.shape == (2, 4, 8, 10)
    z = rand(*y.shape)
    left = (y * z).sum().item()
    assert left == pytest.approx((x * conv2d(z, w, **kwargs)).sum().item(), rel=1e-12)
    inputs = [t.requires_grad_() for t in (rand(1, 2, 3, 3), rand(2, 1, 2, 2), rand(1))]
    assert gradgradcheck(lambda a, b, c: conv_transpose2d(a, b, c, stride=2), inputs)


def test_one_dimension_and_unbatched() -> None:
    x, w, b = rand(2, 4, 11), rand(6, 2, 3), rand(6)
    y = conv1d(x, w, b, stride=2, padding=1, dilation=2, groups=2)
    expected = REFERENCES["conv2d"].forward(
        x.numpy()[:, :, None], w.numpy()[:, :, None], b.numpy(), (1, 2), (0, 1), (1, 2), 2
    )
    np.testing.assert_allclose(y.numpy(), expected[:, :, 0], rtol=1e-12, atol=1e-12)
    single = conv1d(x[1], w, b, stride=2, padding=1, dilation=2, groups=2)
    np.testing.assert_array_equal(single.numpy(), y.numpy()[1])
    image = rand(3, 6, 7)
    kernel = rand(2, 3, 2, 2)
    np.testing.assert_array_equal(
        conv2d(image, kernel).numpy(), conv2d(image.unsqueeze(0), kernel).numpy()[0]
    )


VOLUMES = [
    ((2, 2, 4, 4, 5), (3, 2, 2, 2, 3), {"padding": (1, 0, 1)}),
    ((2, 4, 5, 3, 4), (2, 2, 2, 2, 2), {"stride": (2, 1, 2), "padding": 1, "groups": 2}),
    ((1, 2, 5, 4, 4), (2, 2, 2, 2, 2), {"stride": (3, 1, 1), "dilation": (2, 1, 1)}),
]


@pytest.mark.parametrize(("x", "w", "kwargs"), VOLUMES)
def test_volumes_have_first_and_second_gradients(x: Any, w: Any, kwargs: Any) -> None:
    inputs = [t.requires_grad_() for t in (rand(*x), rand(*w), rand(w[0]))]

    def f(a: Any, b: Any, c: Any) -> Any:
        return conv3d(a, b, c, **kwargs)

    assert gradcheck(f, inputs) and gradgradcheck(f, inputs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("x", "w", "kwargs"), VOLUMES)
def test_volumes_in_any_format_chunk_and_number_of_threads(
    x: Any, w: Any, kwargs: Any, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = (5, *x[1:])
    input, weight, bias = rand(*x, dtype=dtype), rand(*w, dtype=dtype), rand(w[0], dtype=dtype)
    grad = rand(*conv3d(input, weight, **kwargs).shape, dtype=dtype)
    results = []
    for chunk, threads, form in (
        (8 << 20, 1, lambda t: t), (1, 1, lambda t: t), (1, 2, lambda t: t), (1, 2, channels_last),
        (3000, 2, channels_last),
    ):  # fmt: skip
        monkeypatch.setattr(conv_arrays, "_CHUNK_BYTES", chunk)
        grebe.set_num_threads(threads)
        leaves = [t.clone().requires_grad_() for t in (form(input), weight, bias)]
        y = conv3d(*leaves, **kwargs)
        y.backward(form(grad))
        assert y.array.transpose(0, 2, 3, 4, 1).flags.c_contiguous == (form is channels_last)
        results.append([y.detach().numpy(), *(t.grad.numpy() for t in leaves)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(
                a, b, rtol=0, atol=50 * np.finfo(dtype).eps * np.abs(a).max()
            )
    for a, b in zip(results[1], results[2], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("forward", "transposed", "spatial"),
    [(conv1d, conv_transpose1d, (7,)), (conv3d, conv_transpose3d, (3, 4, 5))],
)
def test_other_dimensions_transposed(forward: Any, transposed: Any, spatial: Any) -> None:
    kwargs: dict[str, Any] = {"stride": 3, "padding": 1, "dilation": 2, "groups": 2}
    kernel = tuple(range(2, 2 + len(spatial)))
    x, w, b = rand(2, 6, *spatial), rand(6, 2, *kernel), rand(4)
    y = transposed(x, w, output_padding=2, **kwargs)
    z = rand(*y.shape)
    left = (y * z).sum().item()
    assert left == pytest.approx((x * forward(z, w, **kwargs)).sum().item(), rel=1e-12)
    biased = transposed(x[0], w, b, output_padding=2, **kwargs).numpy()
    expected = y.numpy()[0] + b.numpy().reshape(-1, *(1,) * len(spatial))
    np.testing.assert_allclose(biased, expected, rtol=1e-12)
    small = [t.requires_grad_() for t in (rand(1, 2, *(2,) * len(spatial)),
                                          rand(2, 1, *(2,) * len(spatial)), rand(1))]  # fmt: skip
    assert gradgradcheck(lambda a, b, c: transposed(a, b, c, stride=2), small)


@pytest.mark.parametrize(
    ("conv", "to_input", "to_weight", "spatial"),
    [(conv1d, conv1d_input, conv1d_weight, (9,)), (conv3d, conv3d_input, conv3d_weight, (4, 5, 3))],
)
def test_gradients_as_functions(conv: Any, to_input: Any, to_weight: Any, spatial: Any) -> None:
    kwargs: dict[str, Any] = {"stride": 2, "padding": 1, "groups": 2}
    x, w = rand(2, 4, *spatial).requires_grad_(), rand(6, 2, *(2,) * len(spatial)).requires_grad_()
    y = conv(x, w, **kwargs)
    dy = rand(*y.shape)
    gx, gw = grebe.autograd.grad(y, (x, w), dy)
    np.testing.assert_array_equal(to_input(x.shape, w, dy, **kwargs).detach().numpy(), gx.numpy())
    np.testing.assert_array_equal(to_weight(x, w.shape, dy, **kwargs).detach().numpy(), gw.numpy())


def test_half_precision_volumes() -> None:
    x, w = rand(2, 3, 4, 4, 4), rand(2, 3, 2, 2, 2)
    wide = [t.to(grebe.bfloat16) for t in (x, w)]
    y = conv3d(*wide)
    assert y.dtype == grebe.bfloat16
    expected = conv3d(*(t.float() for t in wide)).numpy()
    np.testing.assert_allclose(y.float().numpy(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), 1), ((2, 4), 1), ((2, 3), (3, 2))])
def test_same_padding(kernel: Any, dilation: Any) -> None:
    x, w = rand(2, 3, 7, 9), rand(4, 3, *kernel)
    y = conv2d(x, w, padding="same", dilation=dilation)
    d = (dilation, dilation) if isinstance(dilation, int) else dilation
    total = [a * (k - 1) for a, k in zip(d, kernel, strict=True)]
    around = [(0, 0), (0, 0)] + [(t // 2, t - t // 2) for t in total]
    padded = np.pad(x.numpy(), around)
    expected = REFERENCES["conv2d"].forward(padded, w.numpy(), dilation=d)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_infinite_gradient_stays_at_its_pixels() -> None:
    dy = np.zeros((1, 2, 4, 4), np.float32)
    dy[0, 0, 1, 2] = np.inf
    gx = conv2d_input((1, 3, 5, 5), grebe.ones(2, 3, 2, 2), grebe.from_numpy(dy)).numpy()
    expected = np.zeros((1, 3, 5, 5), bool)
    expected[:, :, 1:3, 2:4] = True
    np.testing.assert_array_equal(np.isposinf(gx), expected)
    assert (gx[~expected] == 0).all()


def test_nan_touches_only_its_windows() -> None:
    x = np.ones((1, 1, 20, 20), np.float32)
    x[0, 0, 3, 19] = np.nan
    y = conv2d(grebe.from_numpy(x), grebe.ones(2, 1, 3, 3)).numpy()
    expected = np.zeros((1, 2, 18, 18), bool)
    expected[:, :, 1:4, 17] = True
    np.testing.assert_array_equal(np.isnan(y), expected)


def test_large_weight_gradient_is_the_same_for_any_threads() -> None:
    x, dy = rand(19, 3, 8, 8, dtype=np.float32), rand(19, 5, 6, 6, dtype=np.float32)
    results = []
    for threads in (1, 2, 3):
        grebe.set_num_threads(threads)
        results.append(conv2d_weight(x, (5, 3, 3, 3), dy).numpy().tobytes())
    assert len(set(results)) == 1


def test_winograd_errs_at_most_twice_as_much_as_direct_sums() -> None:
    # A column of zeros makes the kernel 3x4 or 5x6, which takes the direct way to the same values.
    generator = np.random.default_rng(0)
    errors = []
    for channels, size, stride, kernel in (
        (64, 16, 1, 3),
        (256, 8, 1, 3),
        (512, 4, 1, 3),
        (64, 32, 2, 3),
        (256, 10, 2, 3),
        (32, 32, 1, 3),
        (128, 24, 1, 3),
        (32, 20, 1, 5),
        (192, 12, 1, 5),
    ):
        x = np.maximum(generator.standard_normal((4, channels, size, size)), 0)
        w = generator.standard_normal((channels, channels, kernel, kernel))
        w *= (2 / channels) ** 0.5 / kernel
        dy = generator.standard_normal((4, channels, size // stride, size // stride))
        wide_x, wide_w = np.pad(x, 3 * [(0, 0)] + [(0, 1)]), np.pad(w, 3 * [(0, 0)] + [(0, 1)])

        steps = {"padding": kernel // 2, "stride": stride}

        def passes(x: Any, w: Any, dtype: Any, dy: Any = dy, steps: Any = steps) -> list[Any]:
            a, b = (grebe.from_numpy(v.astype(dtype)).requires_grad_() for v in (x, w))
            y = conv2d(a, b, **steps)
            y.backward(grebe.from_numpy(dy.astype(dtype)))
            return [y.detach().numpy(), a.grad.numpy(), b.grad.numpy()]

        exact = passes(x, w, np.float64)
        narrow = passes(x, w, np.float32)
        direct = passes(wide_x, wide_w, np.float32)
        for e, n, d in zip(exact, narrow, direct, strict=True):
            d = d[tuple(slice(k) for k in e.shape)]
            errors.append((np.abs(n - e).max(), np.abs(d - e).max()))
    ratios = [round(float(winograd / direct), 2) for winograd, direct in errors]
    assert max(ratios) <= 2, str(ratios)


@pytest.mark.parametrize(("kernel", "reach"), [(3, 4), (5, 3)])
def test_nan_spreads_over_a_tile_of_six_at_most(kernel: int, reach: int) -> None:
    x = np.ones((4, 32, 28, 28), np.float32)
    x[:, 5, 13, 15] = np.nan
    y = conv2d(grebe.from_numpy(x), grebe.ones(32, 32, kernel, kernel), padding=kernel // 2).numpy()
    inside, around = kernel // 2, np.zeros((28, 28), bool)
    assert np.isnan(y[..., 13 - inside : 14 + inside, 15 - inside : 16 + inside]).all()
    around[13 - reach : 14 + reach, 15 - reach : 16 + reach] = True
    assert not np.isnan(y[..., ~around]).any()


def test_nan_spreads_over_one_tile_at_most() -> None:
    x = np.ones((1, 32, 12, 12), np.float32)
    x[0, 5, 4, 7] = np.nan
    y = conv2d(grebe.from_numpy(x), grebe.ones(32, 32, 3, 3), padding=1).numpy()
    assert np.isnan(y[:, :, 3:6, 6:9]).all()
    assert not np.isnan(y[:, :, [0, 1, 6, 7, 8, 9, 10, 11]]).any()
    assert not np.isnan(y[:, :, :, [0, 1, 2, 3, 4, 5, 10, 11]]).any()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "channels", lambda: conv2d(rand(1, 3, 5, 5), rand(2, 4, 3, 3))),
        (ValueError, "larger than the padded", lambda: conv2d(rand(1, 1, 2, 5), rand(1, 1, 3, 3))),
        (ValueError, r"expected input of shape \[N, C, H, W\]", lambda: conv2d(rand(5), rand(1))),
        (ValueError, "weight of shape", lambda: conv2d(rand(1, 1, 5, 5), rand(1, 3, 3))),
        (ValueError, "stride must be positive", lambda: conv2d(*ONE, stride=0)),
        (ValueError, "dilation must be positive", lambda: conv2d(*ONE, dilation=(1, -1))),
        (ValueError, "padding must be non-negative", lambda: conv2d(*ONE, padding=-1)),
        (TypeError, "stride must be an int", lambda: conv2d(*ONE, stride=1.5)),
        (ValueError, "stride must be an int or 2", lambda: conv2d(*ONE, stride=(1, 2, 3))),
        (ValueError, "'same' or 'valid'", lambda: conv2d(*ONE, padding="full")),
        (ValueError, "strided", lambda: conv2d(*ONE, padding="same", stride=2)),
        (ValueError, "groups", lambda: conv2d(rand(1, 2, 5, 5), rand(3, 1, 3, 3), groups=2)),
        (ValueError, "bias of shape", lambda: conv2d(*ONE, rand(2))),
        (TypeError, "dtype", lambda: conv2d(rand(1, 1, 5, 5, dtype=np.float32), ONE[1])),
        (TypeError, "floating", lambda: conv2d(grebe.ones(1, 1, 5, 5, dtype=grebe.int64), ONE[1])),
        (TypeError, "must be a Tensor", lambda: conv2d(np.ones((1, 1, 5, 5)), ONE[1])),
        (ValueError, "empty", lambda: conv2d(grebe.zeros(1, 0, 5, 5), grebe.zeros(1, 0, 3, 3))),
        (ValueError, "output_padding", lambda: conv_transpose2d(*ONE, output_padding=1)),
        (ValueError, r"\[N, C, D, H, W\] or \[C, D, H, W\]", lambda: conv3d(rand(1, 3, 3), ONE[1])),
        (ValueError, "kD, kH, kW", lambda: conv3d(rand(1, 1, 3, 3, 3), ONE[1])),
        (ValueError, "or 3 ints", lambda: conv3d(*CUBE, stride=(1, 2))),
        (ValueError, r"padded input of size \[3, 3, 3\]", lambda: conv3d(*CUBE, dilation=3)),
        (ValueError, "grad_output", lambda: conv3d_weight(CUBE[0], (1, 1, 2, 2, 2), CUBE[0])),
        (ValueError, "output_padding", lambda: conv_transpose3d(*CUBE, output_padding=(0, 1, 0))),
        (ValueError, "expected input of shape", lambda: conv_transpose1d(*ONE)),
        (ValueError, "would be empty", lambda: conv_transpose2d(*ONE, padding=9)),
        (ValueError, "grad_output", lambda: conv2d_input((1, 1, 5, 5), ONE[1], rand(1, 1, 4, 3))),
    ],
)
def test_errors(error: Any, message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


ONE = (rand(1, 1, 5, 5), rand(1, 1, 3, 3))
CUBE = (rand(1, 1, 3, 3, 3), rand(1, 1, 2, 2, 2))
