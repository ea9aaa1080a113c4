"""L-BFGS: quasi-Newton steps along curvature seen in the last ones, with a line search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..autograd import enable_grad, no_grad
from ..ops.creation import zeros_like
from ..ops.shape import cat
from ..tensor import Tensor
from .optimizer import Optimizer, ParamsT, check_at_least_zero

__all__ = ["LBFGS"]


class LBFGS(Optimizer):
    """L-BFGS (Liu and Nocedal, 1989): ``p += t d``, d = -H g, H from the last changes of g and p.

    A step is up to `max_iter` of these, and calls its closure once or more in each. Without a line
    search t is lr (in the very first ``lr min(1, 1 / |g|_1)``), with "strong_wolfe" a length at
    which loss and slope have fallen enough (Nocedal and Wright, 2006, algorithms 3.5 and 3.6).

    Args:
        params: parameters, all in one group.
        lr: first length of a step.
        max_iter: iterations of a step.
        max_eval: calls of the closure in a step; default 1.25 times `max_iter`.
        tolerance_grad: ends a step when no element of the gradient is larger.
        tolerance_change: ends a step when parameters or loss change by less.
        history_size: changes that are kept.
        line_search_fn: None or "strong_wolfe".

    Raises:
        ValueError: a negative `lr`, or several parameter groups.
        RuntimeError: another line search.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        check_at_least_zero(tolerance_grad=tolerance_grad, tolerance_change=tolerance_change)
        if line_search_fn not in (None, "strong_wolfe"):
            raise RuntimeError(f"only 'strong_wolfe' is supported, got {line_search_fn!r}")
        options = {
            "lr": lr, "max_iter": max_iter,
            "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad, "tolerance_change": tolerance_change,
            "history_size": history_size, "line_search_fn": line_search_fn,
        }  # fmt: skip
        super().__init__(params, options)
        if len(self.param_groups) != 1:
            raise ValueError("LBFGS doesn't support per-parameter options (parameter groups)")
        self._params: list[Tensor] = self.param_groups[0]["params"]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Up to `max_iter` iterations.

        Args:
            closure: clears the gradients, computes the loss, calls backward and returns the loss.

        Returns:
            The loss before the step.
        """
        if closure is None:
            raise TypeError("LBFGS.step: needs a closure that computes the loss again")
        with no_grad():
            return _Search(self, closure).run()


class _Point(NamedTuple):
    """A place on a line: how far along, the loss there, its gradient, its slope along the line."""

    t: float
    loss: float
    grad: Tensor
    slope: float


class _Search:
    """One step of LBFGS. What it keeps for the next is in the state of the first parameter."""

    def __init__(self, optimizer: LBFGS, closure: Callable[[], Any]) -> None:
        self.params, self.options = optimizer._params, optimizer.param_groups[0]
        self.state = optimizer.state[self.params[0]]
        self.closure = closure
        self.evaluations = 0

    # ---- parameters and gradients as one vector ----

    def evaluate(self) -> Any:
        """The loss; afterwards the gradients are those of the present parameters."""
        with enable_grad():
            loss = self.closure()
        self.evaluations += 1
        self.state["func_evals"] = self.state.get("func_evals", 0) + 1
        return loss

    def gradient(self) -> Tensor:
        parts = [zeros_like(p) if p.grad is None else p.grad for p in self.params]
        vector: Tensor = cat([p.reshape(-1) for p in parts])
        return vector

    def move(self, direction: Tensor, t: float) -> None:
        start = 0
        for p in self.params:
            p.add_(direction[start : start + p.numel()].reshape(p.shape), alpha=t)
            start += p.numel()

    # ---- iterations ----

    def run(self) -> Any:
        options = self.options
        first_loss = self.evaluate()
        loss, grad = float(first_loss), self.gradient()
        if _largest(grad) <= options["tolerance_grad"]:
            return first_loss
        for iteration in range(1, options["max_iter"] + 1):
            n = self.state["n_iter"] = self.state.get("n_iter", 0) + 1
            direction = self.direction(grad)
            t = options["lr"]
            if n == 1:
                t *= min(1.0, 1.0 / float(grad.abs().sum()))
            self.state.update(d=direction, prev_flat_grad=grad, t=t)
            slope = float(grad.dot(direction))
            if slope > -options["tolerance_change"]:
                break
            before = loss
            if options["line_search_fn"] is not None:
                loss, grad, t = self.search_line(direction, _Point(0.0, loss, grad, slope), t)
                self.move(direction, t)
                self.state["t"] = t
            else:
                self.move(direction, t)
                if iteration < options["max_iter"]:
                    loss, grad = float(self.evaluate()), self.gradient()
            if (
                self.evaluations >= options["max_eval"]
                or _largest(grad) <= options["tolerance_grad"]
                or _largest(direction) * abs(t) <= options["tolerance_change"]
                or abs(loss - before) < options["tolerance_change"]
            ):
                break
        return first_loss

    def direction(self, grad: Tensor) -> Tensor:
        """-H grad by the two loops over the changes that are kept (Nocedal 1980)."""
        state = self.state
        if state["n_iter"] == 1:
            state.update(old_dirs=[], old_stps=[], ro=[], H_diag=1.0)
            return -grad
        gradients, steps, inverses = state["old_dirs"], state["old_stps"], state["ro"]
        y, s = grad - state["prev_flat_grad"], state["d"] * state["t"]
        curvature = float(y.dot(s))
        if curvature > 1e-10:
            if len(gradients) == self.options["history_size"]:
                for kept in (gradients, steps, inverses):
                    kept.pop(0)
            gradients.append(y)
            steps.append(s)
            inverses.append(1.0 / curvature)
            state["H_diag"] = curvature / float(y.dot(y))
        q, weights = -grad, []
        for y, s, inverse in zip(gradients[::-1], steps[::-1], inverses[::-1], strict=True):
            weights.append(float(s.dot(q)) * inverse)
            q = q - y * weights[-1]
        d = q * state["H_diag"]
        for y, s, inverse, weight in zip(gradients, steps, inverses, weights[::-1], strict=True):
            d = d + s * (weight - float(y.dot(d)) * inverse)
        return d

    # ---- line search ----

    def at(self, direction: Tensor, t: float, start: list[Tensor]) -> _Point:
        """The point `t` along the direction; parameters are as before afterwards."""
        self.move(direction, t)
        loss, grad = float(self.evaluate()), self.gradient()
        for p, value in zip(self.params, start, strict=True):
            p.copy_(value)
        return _Point(t, loss, grad, float(grad.dot(direction)))

    def search_line(
        self, direction: Tensor, origin: _Point, t: float
    ) -> tuple[float, Tensor, float]:
        """A point that fulfils the strong Wolfe conditions: its loss, gradient and place."""
        start = [p.clone() for p in self.params]

        def at(place: float) -> _Point:
            return self.at(direction, place, start)

        low, high, done, tried = _bracket(at, origin, t)
        span = _largest(direction)
        too_near = False
        while not done and tried < _MOST_TRIALS:
            left, right = sorted((low.t, high.t))
            if (right - left) * span < 1e-9:
                break
            t = _minimum_of_cubic(low, high, left, right)
            margin = 0.1 * (right - left)
            if min(right - t, t - left) < margin:
                if too_near or not left < t < right:
                    t = right - margin if abs(t - right) < abs(t - left) else left + margin
                    too_near = False
                else:
                    too_near = True
            else:
                too_near = False
            new = at(t)
            tried += 1
            if not _falls_enough(new, origin) or new.loss >= low.loss:
                high = new
                if high.loss < low.loss:
                    low, high = high, low
                continue
            done = _is_flat_enough(new, origin)
            if not done and new.slope * (high.t - low.t) >= 0:
                high = low
            low = new
        return low.loss, low.grad, low.t


_MOST_TRIALS = 25


def _largest(vector: Tensor) -> float:
    return float(vector.abs().max())


def _falls_enough(point: _Point, origin: _Point) -> bool:
    return point.loss <= origin.loss + 1e-4 * point.t * origin.slope


def _is_flat_enough(point: _Point, origin: _Point) -> bool:
    return abs(point.slope) <= -0.9 * origin.slope


def _bracket(
    at: Callable[[float], _Point], origin: _Point, t: float
) -> tuple[_Point, _Point, bool, int]:
    """Two points with a good one between them, the lower first; whether that is good itself."""
    last, new = origin, at(t)
    for tried in range(_MOST_TRIALS):
        if not _falls_enough(new, origin) or (tried > 1 and new.loss >= last.loss):
            return *_ordered(last, new), False, tried
        if _is_flat_enough(new, origin):
            return new, new, True, tried
        if new.slope >= 0:
            return *_ordered(last, new), False, tried
        t = _minimum_of_cubic(last, new, new.t + 0.01 * (new.t - last.t), new.t * 10)
        last, new = new, at(t)
    return *_ordered(origin, new), False, _MOST_TRIALS


def _ordered(a: _Point, b: _Point) -> tuple[_Point, _Point]:
    return (a, b) if a.loss <= b.loss else (b, a)


def _minimum_of_cubic(a: _Point, b: _Point, low: float, high: float) -> float:
    """Where the cubic through both points with their slopes is least, within [low, high]."""
    if a.t > b.t:
        a, b = b, a
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if square < 0:
        return (low + high) / 2
    d2 = math.sqrt(square)
    t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2))
    return min(max(t, low), high)
