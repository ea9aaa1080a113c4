"""Optimizers against a float64 NumPy version of their formulas; groups, checkpoints, schedules."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import optim
from grebe._cpu import wrap
from grebe.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from grebe.optim import lr_scheduler

SHAPES = [(), (1,), (3, 5), (64,), (65, 33), (17000,), (2, 3, 4, 5)]
State = dict[str, Any]


def draw(dtype: Any, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]


def leaves(arrays: list[Any]) -> list[grebe.Tensor]:
    return [grebe.from_numpy(a.copy()).requires_grad_() for a in arrays]


def set_grads(params: list[grebe.Tensor], seed: int) -> list[Any]:
    grads = draw(params[0].dtype, seed)
    for p, g in zip(params, grads, strict=True):
        p.grad = grebe.from_numpy(g)
    return grads


# ---- formulas ----


def sgd(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    g = g + o.get("weight_decay", 0) * p
    momentum = o.get("momentum", 0)
    if momentum:
        s["b"] = g if t == 1 else momentum * s["b"] + (1 - o.get("dampening", 0)) * g
        g = g + momentum * s["b"] if o.get("nesterov") else s["b"]
    return p - o["lr"] * g


def adam(p: Any, g: Any, s: State, t: int, o: State, decoupled: bool = False) -> Any:
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    decay = o.get("weight_decay", 1e-2 if decoupled else 0)
    if decoupled:
        p = p * (1 - o["lr"] * decay)
    else:
        g = g + decay * p
    s["m"] = beta1 * s.get("m", 0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * g * g
    s["top"] = np.maximum(s.get("top", 0), s["v"])
    v = s["top"] if o.get("amsgrad") else s["v"]
    denominator = np.sqrt(v / (1 - beta2**t)) + o.get("eps", 1e-8)
    return p - o["lr"] * (s["m"] / (1 - beta1**t)) / denominator


def adamw(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    return adam(p, g, s, t, o, decoupled=True)


def adagrad(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    g = g + o.get("weight_decay", 0) * p
    s["sum"] = s.get("sum", o.get("initial_accumulator_value", 0)) + g * g
    rate = o["lr"] / (1 + (t - 1) * o.get("lr_decay", 0))
    return p - rate * g / (np.sqrt(s["sum"]) + 1e-10)


def rmsprop(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    g = g + o.get("weight_decay", 0) * p
    alpha = o.get("alpha", 0.99)
    s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g * g
    v = s["v"]
    if o.get("centered"):
        s["a"] = alpha * s.get("a", 0) + (1 - alpha) * g
        v = v - s["a"] ** 2
    step = g / (np.sqrt(v) + 1e-8)
    if o.get("momentum"):
        step = s["b"] = o["momentum"] * s.get("b", 0) + step
    return p - o["lr"] * step


def adadelta(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    g = g + o.get("weight_decay", 0) * p
    rho, eps = o.get("rho", 0.9), 1e-6
    s["v"] = rho * s.get("v", 0) + (1 - rho) * g * g
    step = np.sqrt(s.get("u", 0) + eps) / np.sqrt(s["v"] + eps) * g
    s["u"] = rho * s.get("u", 0) + (1 - rho) * step * step
    return p - o["lr"] * step


def adamax(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    g = g + o.get("weight_decay", 0) * p
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["u"] = np.maximum(0.999 * s.get("u", 0), np.abs(g) + 1e-8)
    return p - o["lr"] / (1 - 0.9**t) * s["m"] / s["u"]


def nadam(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    decay = o.get("weight_decay", 0)
    if o.get("decoupled_weight_decay"):
        p = p * (1 - o["lr"] * decay)
    else:
        g = g + decay * p
    now, following = (0.9 * (1 - 0.5 * 0.96 ** (k * 4e-3)) for k in (t, t + 1))
    s["all"] = s.get("all", 1.0) * now
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g * g
    step = (1 - now) / (1 - s["all"]) * g + following / (1 - s["all"] * following) * s["m"]
    return p - o["lr"] * step / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)


def radam(p: Any, g: Any, s: State, t: int, o: State) -> Any:
    beta2, decay = o.get("betas", (0.9, 0.999))[1], o.get("weight_decay", 0)
    if o.get("decoupled_weight_decay"):
        p = p * (1 - o["lr"] * decay)
    else:
        g = g + decay * p
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * g * g
    most = 2 / (1 - beta2) - 1
    r = most - 2 * t * beta2**t / (1 - beta2**t)
    step = s["m"] / (1 - 0.9**t)
    if r > 5:
        ratio = (r - 4) * (r - 2) * most / ((most - 4) * (most - 2) * r)
        step = step * np.sqrt(ratio * (1 - beta2**t)) / (np.sqrt(s["v"]) + 1e-8)
    return p - o["lr"] * step


Rule = Callable[[Any, Any, State, int, State], Any]
CASES: list[tuple[type[optim.Optimizer], Rule, State]] = [
    (optim.SGD, sgd, {"lr": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "weight_decay": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (optim.Adam, adam, {"lr": 0.1}),
    (optim.Adam, adam, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    (optim.Adam, adam, {"lr": 0.1, "amsgrad": True}),
    (optim.Adam, adam, {"lr": 0.1, "capturable": True}),
    (optim.AdamW, adamw, {"lr": 0.1}),
    (optim.AdamW, adamw, {"lr": 0.1, "weight_decay": 0.3, "amsgrad": True}),
    (optim.Adamax, adamax, {"lr": 0.1}),
    (optim.Adamax, adamax, {"lr": 0.1, "weight_decay": 0.1}),
    (optim.NAdam, nadam, {"lr": 0.1, "weight_decay": 0.1}),
    (optim.NAdam, nadam, {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (optim.RAdam, radam, {"lr": 0.1, "betas": (0.9, 0.95)}),
    (optim.RAdam, radam, {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (optim.Adagrad, adagrad, {"lr": 0.1}),
    (optim.Adagrad, adagrad, {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    (optim.RMSprop, rmsprop, {"lr": 0.1}),
    (optim.RMSprop, rmsprop, {"lr": 0.1, "alpha": 0.9, "momentum": 0.9, "weight_decay": 0.1}),
    (optim.RMSprop, rmsprop, {"lr": 0.1, "centered": True, "momentum": 0.5}),
    (optim.Adadelta, adadelta, {"lr": 1.0}),
    (optim.Adadelta, adadelta, {"lr": 0.5, "rho": 0.8, "weight_decay": 0.1}),
]
IDS = [f"{c[0].__name__}-{','.join(c[2])}" for c in CASES]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("optimizer", "rule", "options"), CASES, ids=IDS)
def test_rule(
    optimizer: type[optim.Optimizer], rule: Rule, options: State, dtype: Any, maximize: bool
) -> None:
    params = leaves(draw(dtype))
    o = optimizer(params, maximize=maximize, **options)
    want = [p.detach().numpy().astype(np.float64) for p in params]
    states: list[State] = [{} for _ in params]
    for t in range(1, 11):
        grads = set_grads(params, t)
        o.step()
        for i, g in enumerate(grads):
            sign = -1 if maximize else 1
            want[i] = rule(want[i], sign * g.astype(np.float64), states[i], t, options)
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    for p, w in zip(params, want, strict=True):
        assert p.dtype == dtype and p.shape == w.shape and p._version == 10
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimizer", [optim.SGD, optim.Adam, optim.Adagrad, optim.RMSprop])
def test_threads_change_no_bit(optimizer: type[optim.Optimizer]) -> None:
    found = []
    for threads in (1, 2):
        grebe.set_num_threads(threads)
        params = leaves(draw(np.float32))
        o = optimizer(params, lr=0.1)
        for t in range(3):
            set_grads(params, t)
            norm = clip_grad_norm_(params, 5.0)
            o.step()
        found.append(
            norm.numpy().tobytes() + b"".join(p.detach().numpy().tobytes() for p in params)
        )
    assert found[0] == found[1]


# ---- memory layouts ----


def test_layouts_of_parameters_and_gradients() -> None:
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 4, 6, 5, 3)).astype(np.float32)[:2]
    room = np.zeros((8, 12, 5, 3), np.float32)
    layouts = [
        (x.copy(), g.copy()),
        (np.asfortranarray(x), g.copy()),
        (np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1), np.asfortranarray(g)),
        (room[::2, ::2], np.broadcast_to(g[:, :, :, :1], g.shape)),
    ]
    layouts[3][0][...] = x
    for array, grad in layouts:
        p = grebe.from_numpy(array).requires_grad_()
        o = optim.Adam([p], lr=0.1, weight_decay=0.1)
        want, state = x.astype(np.float64), State()
        for t in range(1, 4):
            p.grad = wrap(grad)
            o.step()
            want = adam(want, grad.astype(np.float64), state, t, {"lr": 0.1, "weight_decay": 0.1})
        np.testing.assert_allclose(p.detach().numpy(), want, rtol=1e-5, atol=1e-6)
        assert p.array is array or np.shares_memory(p.array, array)
    assert (room[1::2] == 0).all() and (room[:, 1::2] == 0).all()


# ---- the class ----


def test_missing_gradients_are_skipped() -> None:
    p, q = leaves([np.ones(3, np.float32), np.ones(2, np.float32)])
    o = optim.SGD([p, q], lr=1.0, momentum=0.9)
    p.grad = grebe.ones(3)
    o.step()
    assert p.tolist() == [0, 0, 0] and q.tolist() == [1, 1]
    q.grad = grebe.ones(2)
    o.step()  # p's second step, q's first
    np.testing.assert_allclose(p.detach().numpy(), -1.9, rtol=1e-6)
    assert q.tolist() == [0, 0]
    o.zero_grad()
    assert p.grad is None and q.grad is None
    p.grad = grebe.ones(3)
    o.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0, 0, 0]


def test_closure_runs_with_gradients() -> None:
    (p,) = leaves([np.ones(3, np.float32)])
    o = optim.SGD([p], lr=0.5)

    def closure() -> grebe.Tensor:
        o.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with grebe.no_grad():
        assert o.step(closure).item() == 3
    assert p.tolist() == [0, 0, 0]


def test_groups() -> None:
    p, q = leaves([np.ones(2, np.float32), np.ones(2, np.float32)])
    o = optim.SGD([{"params": [p], "lr": 1.0}, {"params": q}], lr=0.5, momentum=0.9)
    assert [g["lr"] for g in o.param_groups] == [1.0, 0.5]
    p.grad, q.grad = grebe.ones(2), grebe.ones(2)
    o.step()
    assert p.tolist() == [0, 0] and q.tolist() == [0.5, 0.5]
    assert "Parameter Group 1" in repr(o) and "momentum: 0.9" in repr(o)


@pytest.mark.parametrize(("optimizer", "rule", "options"), CASES, ids=IDS)
def test_checkpoint(optimizer: type[optim.Optimizer], rule: Rule, options: State) -> None:
    params = leaves(draw(np.float32))
    o = optimizer(params, **options)
    set_grads(params, 1)
    o.step()
    saved = pickle.loads(pickle.dumps(o.state_dict()))
    assert set(saved) == {"state", "param_groups"}
    assert saved["param_groups"][0]["params"] == list(range(len(SHAPES)))
    twins = leaves([p.detach().numpy() for p in params])
    other = optimizer(twins, lr=123.0)
    other.load_state_dict(saved)
    for t in (2, 3):
        set_grads(params, t)
        set_grads(twins, t)
        o.step()
        other.step()
    for p, q in zip(params, twins, strict=True):
        assert p.tolist() == q.tolist()
    for key, value in saved["state"].items():  # loaded states are copies
        for name, kept in value.items():
            if isinstance(kept, grebe.Tensor):
                assert other.state[twins[key]][name].array is not kept.array


def test_checkpoint_errors() -> None:
    p, q = leaves([np.ones(2, np.float32), np.ones(3, np.float32)])
    saved = optim.SGD([p], lr=1.0).state_dict()
    with pytest.raises(ValueError, match="expected 2 parameters, got 1"):
        optim.SGD([p, q], lr=1.0).load_state_dict(saved)
    with pytest.raises(ValueError, match="number of parameter groups: expected 2, got 1"):
        optim.SGD([{"params": [p]}, {"params": [q]}], lr=1.0).load_state_dict(saved)
    p.grad = grebe.ones(2)
    adam_ = optim.Adam([p])
    adam_.step()
    with pytest.raises(ValueError, match=r"'exp_avg' has shape \(2,\), its parameter \(3,\)"):
        optim.Adam([q]).load_state_dict(adam_.state_dict())


def test_errors() -> None:
    (p,) = leaves([np.ones(2, np.float32)])
    bad: list[tuple[Any, State, str]] = [
        (optim.SGD, {"lr": -1.0}, "Invalid learning rate: -1.0"),
        (optim.SGD, {"lr": math.nan}, "Invalid learning rate: nan"),
        (optim.SGD, {"momentum": -1.0}, "Invalid momentum value: -1.0"),
        (optim.SGD, {"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        (optim.SGD, {"nesterov": True}, "Nesterov momentum requires a momentum"),
        (optim.Adam, {"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        (optim.AdamW, {"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        (optim.Adam, {"eps": -1.0}, "Invalid epsilon value: -1.0"),
        (optim.RAdam, {"lr": -1.0}, "Invalid learning rate: -1.0"),
        (optim.NAdam, {"momentum_decay": -1.0}, "Invalid momentum_decay value: -1.0"),
        (optim.LBFGS, {"lr": -1.0}, "Invalid learning rate: -1.0"),
        (optim.Adagrad, {"lr_decay": -1.0}, "Invalid lr_decay value: -1.0"),
        (optim.RMSprop, {"alpha": -1.0}, "Invalid alpha value: -1.0"),
        (optim.Adadelta, {"rho": 1.5}, "Invalid rho value: 1.5"),
    ]
    for optimizer, options, message in bad:
        with pytest.raises(ValueError, match=message):
            optimizer([p], **options)
    with pytest.raises(TypeError, match="iterable of Tensors or dicts, but got a Tensor"):
        optim.SGD(p)
    with pytest.raises(ValueError, match="empty parameter list"):
        optim.SGD([])
    with pytest.raises(ValueError, match="non-leaf"):
        optim.SGD([p * 2])
    with pytest.raises(TypeError, match="one of the params is int"):
        optim.SGD([3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="duplicate"):
        optim.SGD([p, p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optim.SGD([{"params": [p]}, {"params": [p]}])
    with pytest.raises(TypeError, match="ordered collections"):
        optim.SGD([{"params": {p}}])
    with pytest.raises(TypeError, match="expected float32 or float64 parameters, got int64"):
        optim.SGD([grebe.tensor([1, 2])])


def test_read_only_parameters_are_refused() -> None:
    array = np.ones(3, np.float32)
    p = grebe.from_numpy(array).requires_grad_()
    p.grad = grebe.ones(3)
    array.flags.writeable = p.array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optim.SGD([p], lr=1.0).step()


# ---- clipping ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
def test_clip_grad_norm(dtype: Any, norm_type: float) -> None:
    params = leaves(draw(dtype))
    grads = set_grads(params, 1)
    flat = np.concatenate([g.ravel() for g in grads]).astype(np.float64)
    want = np.linalg.norm(flat, norm_type)
    norm = clip_grad_norm_(params, 3.0, norm_type)
    np.testing.assert_allclose(norm.item(), want, rtol=1e-6)
    got = np.concatenate([p.grad.numpy().ravel() for p in params])
    np.testing.assert_allclose(got, flat * 3 / (want + 1e-6), rtol=2e-6)
    np.testing.assert_allclose(get_total_norm([p.grad for p in params], norm_type).item(), 3, 1e-5)
    before = got.copy()
    clip_grad_norm_(params, 1e9, norm_type)
    assert (np.concatenate([p.grad.numpy().ravel() for p in params]) == before).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_grad_value(dtype: Any) -> None:
    params = leaves(draw(dtype))
    grads = set_grads(params, 1)
    params[2].grad = grebe.from_numpy(np.repeat(grads[2], 2, axis=0)[::2])
    params[3].grad.array[0] = math.nan
    clip_grad_value_(params, 0.5)
    for p, g in zip(params, grads, strict=True):
        got = p.grad.numpy()
        if p is params[3]:
            assert np.isnan(got[0])
            got, g = got[1:], g[1:]
        assert (got == np.clip(g, -0.5, 0.5)).all()


def test_clip_errors() -> None:
    (p,) = leaves([np.ones(2, np.float32)])
    p.grad = grebe.tensor([math.inf, 1.0])
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    with pytest.raises(TypeError, match="expected Tensors, got int"):
        clip_grad_norm_([3], 1.0)  # type: ignore[list-item]
    assert clip_grad_norm_([], 1.0).item() == 0


# ---- schedules ----


def rates(make: Callable[[optim.Optimizer], lr_scheduler.LRScheduler], epochs: int) -> list[float]:
    (p,) = leaves([np.ones(2, np.float32)])
    o = optim.SGD([p], lr=1.0)
    scheduler = make(o)
    found = []
    for _ in range(epochs):
        found.append(o.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == [found[-1]]
        o.step()
        scheduler.step()
    return found


def test_schedules() -> None:
    s = lr_scheduler
    cosine = [(1 + math.cos(math.pi * t / 4)) / 2 * 0.9 + 0.1 for t in range(10)]
    want: list[tuple[Callable[[optim.Optimizer], s.LRScheduler], list[float]]] = [
        (lambda o: s.StepLR(o, 2, 0.5), [1, 1, 0.5, 0.5, 0.25]),
        (lambda o: s.MultiStepLR(o, [1, 3, 3], 0.5), [1, 0.5, 0.5, 0.125, 0.125]),
        (lambda o: s.ExponentialLR(o, 0.5), [1, 0.5, 0.25, 0.125]),
        (lambda o: s.LambdaLR(o, lambda t: 1 / (1 + t)), [1, 1 / 2, 1 / 3, 1 / 4]),
        (lambda o: s.ConstantLR(o, 0.5, 2), [0.5, 0.5, 1, 1]),
        (lambda o: s.LinearLR(o, 0.5, 1.0, 4), [0.5, 0.625, 0.75, 0.875, 1, 1]),
        (lambda o: s.CosineAnnealingLR(o, 4, 0.1), cosine),
        (
            lambda o: s.SequentialLR(o, [s.ConstantLR(o, 0.1, 2), s.ExponentialLR(o, 0.5)], [2]),
            [0.1, 0.1, 1, 0.5, 0.25],
        ),
    ]
    for make, expected in want:
        np.testing.assert_allclose(rates(make, len(expected)), expected, rtol=1e-12)


def test_schedule_checkpoint_and_errors() -> None:
    (p,) = leaves([np.ones(2, np.float32)])
    o = optim.SGD([p], lr=1.0)
    scheduler = lr_scheduler.StepLR(o, 2, 0.5)
    scheduler.step()
    saved = copy.deepcopy(scheduler.state_dict())
    scheduler.step()
    assert o.param_groups[0]["lr"] == 0.5
    o.param_groups[0]["lr"] = 1.0
    scheduler.load_state_dict(saved)
    scheduler.step()
    assert o.param_groups[0]["lr"] == 0.5 and scheduler.last_epoch == 2
    with pytest.raises(TypeError, match="expected an Optimizer"):
        lr_scheduler.StepLR(None, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step_size >= 1"):
        lr_scheduler.StepLR(o, 0)
    with pytest.raises(ValueError, match="Expected 1 lr_lambdas, but got 2"):
        lr_scheduler.LambdaLR(o, [abs, abs])
    with pytest.raises(ValueError, match="expected 0 milestones for 1 schedulers, got 1"):
        lr_scheduler.SequentialLR(o, [scheduler], [1])
    fresh = optim.SGD([p], lr=1.0)
    with pytest.raises(KeyError, match="initial_lr"):
        lr_scheduler.StepLR(fresh, 2, last_epoch=3)


def test_lbfgs_finds_a_valley() -> None:
    x = grebe.tensor([-1.2, 1.0], dtype=grebe.float64, requires_grad=True)
    optimizer = optim.LBFGS([x], line_search_fn="strong_wolfe")

    def closure() -> grebe.Tensor:
        optimizer.zero_grad()
        loss = 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    np.testing.assert_allclose(x.tolist(), [1, 1], atol=1e-4)  # the slope is below 1e-9
    content = optim.LBFGS([x], tolerance_grad=1.0)
    content.step(closure)
    assert content.state[x]["func_evals"] == 1
    with pytest.raises(TypeError, match="needs a closure"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="only 'strong_wolfe'"):
        optim.LBFGS([x], line_search_fn="armijo")
    with pytest.raises(ValueError, match="parameter groups"):
        optim.LBFGS([{"params": [x]}, {"params": [grebe.ones(1, requires_grad=True)]}])
