"""The optimizers. Each step is one kernel call over all parameters of a group (csrc/cpu/optim.cpp).

`foreach` and `fused` are accepted as PyTorch spells them and change nothing: every step is fused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._cpu import wrap
from ..autograd import no_grad
from ..backend import Array, is_capturing, like
from ..ops.shape import stack
from ..tensor import Tensor
from .optimizer import Batch, Optimizer, ParamsT, check_at_least_zero

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "RMSprop"]  # more in variants.py


def next_step(state: dict[str, Any]) -> int:
    """Number of the coming update; parameters at the same number share their bias corrections."""
    return int(state.get("step", 0)) + 1


def _shared_step(state: dict[str, Any]) -> Any:
    """Parameters whose number of updates is one tensor, or is no tensor yet and the same."""
    step = state.get("step", 0)
    return (id(step),) if isinstance(step, Tensor) else step


def _step_tensor(name: str, batch: Batch) -> Tensor:
    """The number of updates on the device, which `batch` shares."""
    step = batch.states[0].get("step", 0)
    if isinstance(step, Tensor):
        return step
    if is_capturing():
        raise RuntimeError(f"{name}: make a step before capturing one, so that its state exists")
    made = wrap(like(np.array(step, np.float32), batch.params[0]))
    batch.count(made)
    return made


def check_capture(name: str) -> None:
    """For rules whose steps depend on their number."""
    if is_capturing():
        raise RuntimeError(
            f"{name}: a captured step would have the same size in every replay; use Adam or AdamW "
            "with capturable=True, SGD, RMSprop or Adadelta, or capture forward and backward only"
        )


def check_betas(betas: tuple[float, float]) -> None:
    for i, beta in enumerate(betas):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")


class SGD(Optimizer):
    """Stochastic gradient descent, optionally with momentum.

    With g the gradient plus ``weight_decay * p``: ``b = momentum * b + (1 - dampening) * g``
    (b = g at the first step), then ``p -= lr * b``, or ``p -= lr * (g + momentum * b)`` for
    Nesterov's momentum (Sutskever et al., 2013; D2L sections 12.4-12.6).

    Args:
        params: parameters, or dicts of parameter groups.
        lr: learning rate.
        momentum: momentum factor.
        dampening: dampening of the momentum.
        weight_decay: L2 penalty.
        nesterov: use Nesterov's momentum; needs `momentum` and no dampening.
        maximize: ascend instead of descend.

    Raises:
        ValueError: a negative `lr`, `momentum` or `weight_decay`; wrong use of `nesterov`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        check_at_least_zero(momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    def _update(self, group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        for first, batch in self.batches(group, lambda s: s.get("momentum_buffer") is None):
            if first and momentum and is_capturing():
                raise RuntimeError(
                    "SGD: make a step before capturing one, so that its momentum exists"
                )
            buffers = batch.state("momentum_buffer") if momentum else []
            batch.kernels.sgd_step(
                batch.params,
                batch.grads,
                buffers,
                group["lr"],
                momentum,
                group["dampening"],
                group["weight_decay"],
                group["nesterov"],
                group["maximize"],
                first,
            )
            batch.written()


class Adam(Optimizer):
    """Adam: steps scaled by running moments of the gradient.

    ``m = beta1 m + (1 - beta1) g``, ``v = beta2 v + (1 - beta2) g²``, then
    ``p -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)``
    (Kingma and Ba, 2015; D2L section 12.10).

    Args:
        params: parameters, or dicts of parameter groups.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the denominator.
        weight_decay: L2 penalty, part of the gradient.
        amsgrad: divide by the largest second moment so far (Reddi et al., 2018).
        maximize: ascend instead of descend.
        capturable: count the steps in a tensor beside the parameters, so that a CUDA graph may
            contain the step; `lr` stays as it was when captured.
        decoupled_weight_decay: shrink parameters directly, as AdamW does.

    Raises:
        ValueError: negative `lr`, `eps` or `weight_decay`; a beta outside [0, 1).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not eps >= 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        check_betas(betas)
        check_at_least_zero(weight_decay=weight_decay)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "capturable": capturable,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
        )

    def _update(self, group: dict[str, Any]) -> None:
        name, lr, (beta1, beta2) = type(self).__name__, group["lr"], group["betas"]
        if group.get("capturable"):
            for _, batch in self.batches(group, _shared_step):
                with no_grad():
                    t = _step_tensor(name, batch).add_(1).double()
                    corrections = stack([lr / (1 - beta1**t), (1 - beta2**t).sqrt()])
                self._update_batch(group, batch, corrections.array, 0.0, 1.0)
            return
        check_capture(name)
        for count, batch in self.batches(group, next_step):
            batch.count(count)
            step_size, correction2 = lr / (1 - beta1**count), math.sqrt(1 - beta2**count)
            self._update_batch(group, batch, None, step_size, correction2)

    def _update_batch(
        self, group: dict[str, Any], batch: Batch, corrections: Array | None, step_size: float,
        correction2: float,
    ) -> None:  # fmt: skip
        lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        decoupled = group["decoupled_weight_decay"]
        batch.kernels.adam_step(
            batch.params,
            batch.grads,
            batch.state("exp_avg"),
            batch.state("exp_avg_sq"),
            batch.state("max_exp_avg_sq") if group["amsgrad"] else [],
            corrections,
            step_size,
            beta1,
            beta2,
            group["eps"],
            0.0 if decoupled else decay,
            1 - lr * decay if decoupled else 1.0,
            correction2,
            group["maximize"],
        )
        batch.written()


class AdamW(Adam):
    """Adam with decoupled weight decay: ``p *= 1 - lr * weight_decay`` before the step.

    Loshchilov and Hutter, "Decoupled weight decay regularization", 2019. Arguments as for `Adam`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            fused=fused,
            decoupled_weight_decay=True,
        )


class Adagrad(Optimizer):
    """Adagrad: ``s += g²``, ``p -= lr / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps)``.

    Duchi et al., 2011; D2L section 12.7.

    Args:
        params: parameters, or dicts of parameter groups.
        lr: learning rate.
        lr_decay: decay of the learning rate per step.
        weight_decay: L2 penalty.
        initial_accumulator_value: first value of the sum of squares.
        eps: added to the denominator.
        maximize: ascend instead of descend.

    Raises:
        ValueError: a negative option.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not eps >= 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        check_at_least_zero(
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
        )
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "eps": eps,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "maximize": maximize,
            },
        )

    def _update(self, group: dict[str, Any]) -> None:
        if group["lr_decay"]:
            check_capture("Adagrad with lr_decay")
        for step, batch in self.batches(group, next_step):
            batch.count(step)
            fresh = [state for state in batch.states if "sum" not in state]
            sums = batch.state("sum")
            for state in fresh:
                state["sum"].array[...] = group["initial_accumulator_value"]
            batch.kernels.adagrad_step(
                batch.params,
                batch.grads,
                sums,
                group["lr"] / (1 + (step - 1) * group["lr_decay"]),
                group["weight_decay"],
                group["eps"],
                group["maximize"],
            )
            batch.written()


class RMSprop(Optimizer):
    """RMSprop: ``s = alpha s + (1 - alpha) g²``, ``p -= lr * g / (sqrt(s) + eps)``.

    Hinton's lecture 6e, 2012; D2L section 12.8. `centered` subtracts the squared running mean of
    the gradient from s (Graves, 2013).

    Args:
        params: parameters, or dicts of parameter groups.
        lr: learning rate.
        alpha: decay of the running mean of squares.
        eps: added to the denominator.
        weight_decay: L2 penalty.
        momentum: momentum of the scaled gradient.
        centered: normalise by an estimate of the variance.
        maximize: ascend instead of descend.

    Raises:
        ValueError: a negative option.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not eps >= 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        check_at_least_zero(momentum=momentum, weight_decay=weight_decay, alpha=alpha)
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "alpha": alpha,
                "eps": eps,
                "centered": centered,
                "weight_decay": weight_decay,
                "maximize": maximize,
            },
        )

    def _update(self, group: dict[str, Any]) -> None:
        for step, batch in self.batches(group, next_step):
            batch.count(step)
            batch.kernels.rmsprop_step(
                batch.params,
                batch.grads,
                batch.state("square_avg"),
                batch.state("momentum_buffer") if group["momentum"] > 0 else [],
                batch.state("grad_avg") if group["centered"] else [],
                group["lr"],
                group["alpha"],
                group["eps"],
                group["weight_decay"],
                group["momentum"],
                group["maximize"],
            )
            batch.written()


class Adadelta(Optimizer):
    """Adadelta: steps in units of the running size of earlier steps.

    ``s = rho s + (1 - rho) g²``, ``d = sqrt(u + eps) / sqrt(s + eps) * g``,
    ``u = rho u + (1 - rho) d²``, ``p -= lr * d`` (Zeiler, 2012; D2L section 12.9).

    Args:
        params: parameters, or dicts of parameter groups.
        lr: factor on the step.
        rho: decay of the running means.
        eps: added to both of them.
        weight_decay: L2 penalty.
        maximize: ascend instead of descend.

    Raises:
        ValueError: a negative option, or `rho` outside [0, 1].
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not 0.0 <= rho <= 1.0:
            raise ValueError(f"Invalid rho value: {rho}")
        if not eps >= 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        check_at_least_zero(weight_decay=weight_decay)
        super().__init__(
            params,
            {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize},
        )

    def _update(self, group: dict[str, Any]) -> None:
        for step, batch in self.batches(group, next_step):
            batch.count(step)
            batch.kernels.adadelta_step(
                batch.params,
                batch.grads,
                batch.state("square_avg"),
                batch.state("acc_delta"),
                group["lr"],
                group["rho"],
                group["eps"],
                group["weight_decay"],
                group["maximize"],
            )
            batch.written()
