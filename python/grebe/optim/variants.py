"""Variants of Adam: Adamax, NAdam and RAdam. Kernels: csrc/cpu/optim.cpp, csrc/cuda/optim.cu."""

from __future__ import annotations

import math
from typing import Any

from .optimizer import Optimizer, ParamsT, check_at_least_zero
from .optimizers import check_betas, check_capture, next_step

__all__ = ["Adamax", "NAdam", "RAdam"]


def _check(lr: float, betas: tuple[float, float], eps: float, **options: float) -> None:
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    check_betas(betas)
    check_at_least_zero(**options)


def _decays(group: dict[str, Any]) -> tuple[float, float]:
    """L2 penalty, and the factor on parameters that decay by themselves."""
    decay = group["weight_decay"]
    return (0.0, 1 - group["lr"] * decay) if group["decoupled_weight_decay"] else (decay, 1.0)


class Adamax(Optimizer):
    """Adam with the largest gradient so far instead of their running mean square.

    ``m = beta1 m + (1 - beta1) g``, ``u = max(beta2 u, |g| + eps)``,
    ``p -= lr / (1 - beta1^t) * m / u`` (Kingma and Ba, 2015, section 7).

    Args:
        params: parameters, or dicts of parameter groups.
        lr: learning rate.
        betas: decay of the first moment and of the largest gradient.
        eps: added to the gradient's size.
        weight_decay: L2 penalty.
        maximize: ascend instead of descend.

    Raises:
        ValueError: a negative option, or a beta outside [0, 1).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        _check(lr, betas, eps, weight_decay=weight_decay)
        options = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, options)

    def _update(self, group: dict[str, Any]) -> None:
        check_capture("Adamax")
        beta1, beta2 = group["betas"]
        for step, batch in self.batches(group, next_step):
            batch.count(step)
            batch.kernels.adamax_step(
                batch.params,
                batch.grads,
                batch.state("exp_avg"),
                batch.state("exp_inf"),
                group["lr"] / (1 - beta1**step),
                beta1,
                beta2,
                group["eps"],
                group["weight_decay"],
                group["maximize"],
            )
            batch.written()


class NAdam(Optimizer):
    """Adam with Nesterov's momentum, whose size grows with the steps.

    With ``mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)`` and M the product of all of them,
    ``p -= lr * ((1 - mu_t) g / (1 - M_t) + mu_{t+1} m / (1 - M_{t+1})) / (sqrt(v̂) + eps)``, m and v̂
    as Adam's (Dozat, 2016).

    Args:
        params: parameters, or dicts of parameter groups.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the denominator.
        weight_decay: L2 penalty.
        momentum_decay: how fast the momentum grows to beta1.
        decoupled_weight_decay: shrink parameters directly, as AdamW does.
        maximize: ascend instead of descend.

    Raises:
        ValueError: a negative option, or a beta outside [0, 1).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        _check(lr, betas, eps, weight_decay=weight_decay, momentum_decay=momentum_decay)
        options = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, options)

    def _update(self, group: dict[str, Any]) -> None:
        check_capture("NAdam")
        beta1, beta2 = group["betas"]
        penalty, decay = _decays(group)

        def momentum(step: int) -> float:
            return float(beta1 * (1 - 0.5 * 0.96 ** (step * group["momentum_decay"])))

        for (step, product), batch in self.batches(
            group, lambda state: (next_step(state), state.get("mu_product", 1.0))
        ):
            now, following = momentum(step), momentum(step + 1)
            product *= now
            batch.count(step)
            for state in batch.states:
                state["mu_product"] = product
            batch.kernels.nadam_step(
                batch.params,
                batch.grads,
                batch.state("exp_avg"),
                batch.state("exp_avg_sq"),
                group["lr"] * (1 - now) / (1 - product),
                group["lr"] * following / (1 - product * following),
                beta1,
                beta2,
                group["eps"],
                penalty,
                decay,
                math.sqrt(1 - beta2**step),
                group["maximize"],
            )
            batch.written()


class RAdam(Optimizer):
    """Adam whose first steps, with too few gradients for a second moment, use momentum alone.

    With ``r_inf = 2 / (1 - beta2) - 1`` and ``r = r_inf - 2 t beta2^t / (1 - beta2^t)``: while
    r <= 5 ``p -= lr m̂``, then ``p -= lr m̂ * sqrt(1 - beta2^t) / (sqrt(v) + eps)`` times
    ``sqrt((r - 4) (r - 2) r_inf / ((r_inf - 4) (r_inf - 2) r))`` (Liu et al., 2020).

    Args:
        params: parameters, or dicts of parameter groups.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the denominator.
        weight_decay: L2 penalty.
        decoupled_weight_decay: shrink parameters directly, as AdamW does.
        maximize: ascend instead of descend.

    Raises:
        ValueError: a negative option, or a beta outside [0, 1).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        _check(lr, betas, eps, weight_decay=weight_decay)
        options = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, options)

    def _update(self, group: dict[str, Any]) -> None:
        check_capture("RAdam")
        beta1, beta2 = group["betas"]
        penalty, decay = _decays(group)
        for step, batch in self.batches(group, next_step):
            batch.count(step)
            factor = _rectification(beta2, step)
            # Adam's kernel divides by sqrt(v) / correction2 + eps: by 1 in the first steps.
            step_size, eps, correction2 = group["lr"] / (1 - beta1**step), 1.0, math.inf
            if factor:
                step_size, eps, correction2 = step_size * factor, group["eps"], 1.0
            batch.kernels.adam_step(
                batch.params,
                batch.grads,
                batch.state("exp_avg"),
                batch.state("exp_avg_sq"),
                [],
                None,
                step_size,
                beta1,
                beta2,
                eps,
                penalty,
                decay,
                correction2,
                group["maximize"],
            )
            batch.written()


def _rectification(beta2: float, step: int) -> float:
    """What RAdam multiplies m̂ / sqrt(v) by; 0 while the second moment is not to be used."""
    left = 1 - beta2**step
    most = 2 / (1 - beta2) - 1
    length = most - 2 * step * beta2**step / left
    if length <= 5:
        return 0.0
    ratio = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
    return math.sqrt(ratio * left)
