"""The tape: gradients of every Python-level op twice, in-place writes, hooks, user functions."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

import grebe
from grebe.autograd import Function, grad, gradcheck, gradgradcheck


def leaf(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return grebe.tensor(values, requires_grad=True)


UNARY = (
    "exp expm1 sin cos tan tanh sigmoid relu abs erf erfc square atan sinh cosh asinh exp2 neg "
    "gelu silu elu leaky_relu logsigmoid reciprocal floor ceil frac"
).split()
POSITIVE = "log log1p log2 log10 sqrt rsqrt".split()


@pytest.mark.parametrize("name", UNARY)
def test_unary_twice(name):
    def function(x):
        return getattr(x, name)()

    assert gradcheck(function, (leaf(3, 4),))
    assert gradgradcheck(function, (leaf(3, 4),))


@pytest.mark.parametrize("name", POSITIVE)
def test_positive_unary_twice(name):
    def function(x):
        return getattr(x.abs() + 0.5, name)()

    assert gradcheck(function, (leaf(3, 4),))
    assert gradgradcheck(function, (leaf(3, 4),))


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: 2 - a - b,
    "mul": lambda a, b: a * b * 3,
    "div": lambda a, b: a / (b * b + 1) + 1 / (a * a + 1) - a / 3,
    "pow": lambda a, b: (a * a + 1) ** b + a**3 + 2.0**b,
    "maximum": lambda a, b: grebe.maximum(a, b) - grebe.minimum(a, b),
    "where": lambda a, b: grebe.where(a > 0, a, b),
    "atan2": lambda a, b: grebe.atan2(a, b),
    "logaddexp": lambda a, b: grebe.logaddexp(a, b),
    "lerp": lambda a, b: grebe.lerp(a, b.expand(3, 4), 0.3),
    "remainder": lambda a, b: a % (b.abs() + 1),
    "clamp": lambda a, b: a.clamp(-0.5, 0.5) * b,
    "gelu_tanh": lambda a, b: grebe.ops.activation.gelu(a, "tanh") * b,
}


@pytest.mark.parametrize("name", BINARY)
def test_binary_with_broadcasting_twice(name):
    inputs = (leaf(3, 4), leaf(4, seed=1))
    assert gradcheck(BINARY[name], inputs)
    assert gradgradcheck(BINARY[name], inputs)


ROWS = grebe.tensor([0, 2, 2, 1])
GATHERED = grebe.tensor([[[0, 1, 2, 0]], [[2, 2, 1, 0]]])
SHAPES = {
    "sum": lambda c: c.sum(1, keepdim=True) * c.sum((0, 2), keepdim=True),
    "mean": lambda c: c.mean((0, 2), keepdim=True) * c.mean(),
    "max": lambda c: c.max(1, keepdim=True).values * c.min(0, keepdim=True).values,
    "amax": lambda c: c.amax((0, 1)) * c.amin(),
    "var": lambda c: c.var(1) * c.std(),
    "prod": lambda c: c.prod(1),
    "reshape": lambda c: c.permute(2, 0, 1).reshape(4, 6) ** 2,
    "select": lambda c: c[1] * c[0],
    "integer index": lambda c: c[:, ROWS] * c[:, [0, 1, 1, 2]],
    "two indices": lambda c: c[:, [0, 1], [1, 1]] ** 2,
    "mask": lambda c: c[c > 0] ** 2,
    "slice": lambda c: c[..., None, 1:3] ** 2,
    "cat": lambda c: grebe.cat([c, c * 2], 1) ** 2,
    "stack": lambda c: grebe.stack([c, c * c], -1),
    "unbind": lambda c: c.unbind(1)[2] * c.unbind(1)[0],
    "split": lambda c: c.split(2, 1)[1] * c.chunk(2, 2)[0][:, :1, :1],
    "flip": lambda c: c.flip(0, 2) * c,
    "roll": lambda c: c.roll(1, 2) * c,
    "expand": lambda c: c.expand(5, 2, 3, 4) ** 2,
    "repeat": lambda c: c.repeat(2, 1, 1, 2) ** 2,
    "index_select": lambda c: c.index_select(1, ROWS) ** 2,
    "diagonal": lambda c: c.diagonal(0, 1, 2) ** 2,
    "tril": lambda c: c.tril() * c.triu(1).mT.mT,
    "masked_fill": lambda c: c.masked_fill(c > 0, 3.0) ** 2,
    "gather": lambda c: c.gather(1, GATHERED) ** 2,
    "scatter_add": lambda c: c.scatter_add(1, GATHERED, c[:, :1]) ** 2,
    "cast": lambda c: c.to(grebe.float64) ** 2,
    "squeeze": lambda c: c[:1].squeeze(0).unsqueeze(1) ** 2,
    "repeat_interleave": lambda c: c.repeat_interleave(2, 1) ** 2,
    "index_add": lambda c: c.index_add(1, grebe.tensor([0, 0]), c[:, :2]) ** 2,
    "movedim": lambda c: c.movedim(0, 2) ** 2,
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_reductions_twice(name):
    assert gradcheck(SHAPES[name], (leaf(2, 3, 4),))
    assert gradgradcheck(SHAPES[name], (leaf(2, 3, 4),))


def test_gradcheck_finds_a_wrong_gradient_and_nan():

    class Scaled(Function):
        @staticmethod
        def forward(ctx, x, factor):
            ctx.factor = factor
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.factor, None

    def function(factor):
        return lambda x: Scaled.apply(x, factor)

    assert gradcheck(function(2.0), (leaf(3),))
    assert not gradcheck(function(3.0), (leaf(3),), raise_exception=False)
    with pytest.raises(RuntimeError, match="Jacobian for input 0"):
        gradcheck(function(float("nan")), (leaf(3),))


# ---- in-place ----


def test_in_place_writes_keep_the_gradient():
    def function(x):
        y = x * 2
        y[0] = x[1] * x[1]
        y[:, 1].mul_(x[:, 2])
        v = y[2]
        y.add_(1)
        y[1, 1] = 7.0
        return v * y

    assert gradcheck(function, (leaf(3, 3),))
    assert gradgradcheck(function, (leaf(3, 3),))


def test_write_through_a_view_reaches_base_and_other_views():
    def function(x):
        z = grebe.zeros(3, 3, dtype=grebe.float64)
        row, column = z[1], z[:, 0]
        row.copy_(x[0] * x[0])
        return z.sum() + column * 3

    assert gradcheck(function, (leaf(3, 3),))


@pytest.mark.parametrize("write", [
    lambda y: y.mul_(2), lambda y: y.__setitem__(0, 1.0), lambda y: y[1:].zero_(),
    lambda y: y.detach().add_(1), lambda y: y.view(-1)[0].fill_(3),
])  # fmt: skip
def test_saved_values_are_guarded(write):
    x = leaf(3)
    y = x.exp()  # backward needs y
    z = y.sum()
    write(y)
    with pytest.raises(RuntimeError, match="modified by an in-place operation"):
        z.backward()


def test_leaf_that_requires_grad_is_not_written():
    x = leaf(3)
    for write in (lambda: x.add_(1), lambda: x[0].zero_(), lambda: x.__setitem__(0, 1.0)):
        with pytest.raises(RuntimeError, match="leaf"):
            write()
    with grebe.no_grad():
        x.add_(1)
        x[0] = 5.0
    assert x.is_leaf and x.requires_grad and x.array[0] == 5


def test_expanded_and_read_only_memory_is_not_written():
    with pytest.raises(RuntimeError, match="share one memory location"):
        grebe.zeros(1).expand(3).add_(1)
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    with pytest.raises(RuntimeError, match="read-only"):
        grebe.from_numpy(frozen).add_(1)


def test_overlapping_write_reads_old_values():
    x = grebe.arange(6.0)
    x[1:].add_(x[:-1])
    assert x.tolist() == [0, 1, 3, 5, 7, 9]
    y = grebe.arange(6.0)
    y[1:] = y[:-1]
    assert y.tolist() == [0, 0, 1, 2, 3, 4]


# ---- the walk ----


def test_accumulation_retain_graph_and_double_backward_error():
    x = leaf(4)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad.numpy(), 4 * x.array)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_gradients_do_not_share_memory():
    a, b = leaf(3), leaf(3, seed=1)
    (a + b).sum().backward()
    a.grad.zero_()
    assert b.grad.tolist() == [1, 1, 1]
    seed = grebe.ones(3, dtype=grebe.float64)
    c = leaf(3)
    (c + 0).backward(seed)
    c.grad.add_(1)
    assert seed.tolist() == [1, 1, 1]


def test_a_gradient_that_a_hook_kept_is_not_taken_over():
    x, kept = leaf(3), []
    x.register_hook(kept.append)
    (x * 2).sum().backward()
    x.grad.zero_()
    assert kept[0].tolist() == [2, 2, 2]


def test_expanded_gradient_is_stored_as_memory_of_its_own():
    x = leaf(4)
    x.sum().backward()
    x.grad.add_(grebe.arange(4.0, dtype=grebe.float64))
    assert x.grad.tolist() == [1, 2, 3, 4]


def test_long_chain_neither_recurses_nor_leaks():
    x = grebe.ones(2, requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y + x
    node = weakref.ref(y)
    y.sum().backward()
    assert x.grad.tolist() == [100_001, 100_001]
    del y
    assert node() is None


def test_graph_is_freed_without_the_collector():
    gc.disable()
    try:
        x = leaf(5)
        y = (x.exp().tanh() * x).sum()
        references = weakref.ref(y)
        y.backward()
        del y
        assert references() is None
    finally:
        gc.enable()


def test_errors_of_backward():
    with pytest.raises(RuntimeError, match="does not require grad"):
        grebe.ones(1).backward()
    with pytest.raises(RuntimeError, match=r"scalar outputs, got shape \[3\]"):
        (leaf(3) * 2).backward()
    with pytest.raises(RuntimeError, match=r"shape \[2\], expected the output's shape \[3\]"):
        (leaf(3) * 2).backward(grebe.ones(2))
    with pytest.raises(RuntimeError, match="floating point"):
        grebe.arange(3).requires_grad_()
    with pytest.raises(RuntimeError, match="was not used"):
        grad((leaf(2) * 2).sum(), leaf(2))


def test_failed_backward_leaves_nothing_behind():
    class Broken(Function):
        fail = True

        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            if Broken.fail:
                raise ValueError("broken")
            return gradient

    x = leaf(3)
    y = x * 2
    z = (Broken.apply(y) + y).sum()
    with pytest.raises(ValueError, match="broken"):
        z.backward(retain_graph=True)
    Broken.fail = False
    z.backward()
    assert x.grad.tolist() == [4, 4, 4]


def test_grad_leaves_grad_alone_and_walks_only_where_needed():
    x, w = leaf(3), leaf(3, seed=1)
    visited = []
    middle = x * 2
    middle.register_hook(lambda g: visited.append("x"))
    out = (middle * w).sum()
    (found,) = grad(out, w)
    np.testing.assert_allclose(found.numpy(), 2 * x.array)
    assert x.grad is None and w.grad is None and visited == []


def test_grad_of_a_middle_tensor_and_unused_inputs():
    x = leaf(3)
    y = x * 2
    out = (y * y).sum()
    assert np.allclose(grad(out, y, retain_graph=True)[0].array, 2 * y.array)
    assert grad(out, [leaf(2)], allow_unused=True, retain_graph=True) == (None,)
    assert grad(out, [leaf(2)], materialize_grads=True)[0].tolist() == [0, 0]


def test_create_graph_gives_higher_derivatives():
    x = grebe.tensor([2.0], dtype=grebe.float64, requires_grad=True)
    y = x**4
    for expected in (32.0, 48.0, 48.0, 24.0):
        (y,) = grad(y.sum(), x, create_graph=True)
        assert y.item() == pytest.approx(expected)


def test_hooks():
    x = leaf(3)
    y = x * 2
    seen = []
    handle = y.register_hook(lambda g: seen.append(g.tolist()))
    x.register_hook(lambda g: g * 10)
    y.retain_grad()
    y.sum().backward()
    assert seen == [[1, 1, 1]] and y.grad.tolist() == [1, 1, 1] and x.grad.tolist() == [20, 20, 20]
    handle.remove()
    (x * x).sum().backward()  # the hook of a leaf sees the whole gradient of one pass
    assert len(seen) == 1


def test_leaf_hook_runs_once_per_pass():
    x, calls = leaf(3), []
    x.register_hook(lambda g: calls.append(g.tolist()))
    (x + x + x).sum().backward()
    assert calls == [[3, 3, 3]]


def test_grad_modes():
    x = leaf(2)
    with grebe.no_grad():
        assert not (x * 2).requires_grad
        with grebe.enable_grad():
            assert (x * 2).requires_grad
    assert not grebe.no_grad()(lambda: x * 2)().requires_grad
    assert not grebe.no_grad(lambda: x * 2)().requires_grad
    with grebe.set_grad_enabled(False):
        assert not grebe.is_grad_enabled()
    with pytest.raises(ValueError), grebe.no_grad():
        raise ValueError
    assert grebe.is_grad_enabled()


def test_grad_mode_belongs_to_the_thread():
    seen = []
    with grebe.no_grad():
        thread = threading.Thread(target=lambda: seen.append(grebe.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_detach_shares_memory_but_not_history():
    x = leaf(3)
    y = (x * 2).detach()
    assert not y.requires_grad and y.is_leaf
    z = x.detach()
    z[0] = 9
    assert x.array[0] == 9


# ---- user functions ----


class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * gradient * x


class Exp(Function):
    """Saves its output."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


class Parts(Function):
    """Two outputs, a keyword-like constant."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x * factor, x * 2

    @staticmethod
    def backward(ctx, first, second):
        return first * ctx.factor + second * 2, None


def test_user_functions():
    assert gradcheck(Square.apply, (leaf(3),)) and gradgradcheck(Square.apply, (leaf(3),))
    assert gradcheck(Exp.apply, (leaf(3),)) and gradgradcheck(Exp.apply, (leaf(3),))
    assert gradcheck(lambda x: Parts.apply(x, 3.0), (leaf(3),))
    x = leaf(3)
    Parts.apply(x, 3.0)[0].sum().backward()  # the other output unused
    assert x.grad.tolist() == [3, 3, 3]


def test_user_function_with_a_wrong_gradient_is_named():
    class Bad(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient[:2]

    with pytest.raises(RuntimeError, match=r"Bad.backward: gradient 0 has shape \[2\]"):
        Bad.apply(leaf(3)).sum().backward()
