"""Probability distributions under PyTorch's names: sampling, densities, moments, entropies.

Parameters are Tensors or numbers and broadcast to the batch shape; one draw has the event shape,
empty but for vectors. A result has the shape ``sample_shape + batch_shape + event_shape``. D2L
sections 2.6, 22.6 and 22.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from ._cpu import wrap
from .autograd import no_grad
from .backend import Array, like, on_host
from .dtypes import get_default_dtype, is_floating
from .nn.functional import binary_cross_entropy_with_logits, log_softmax, logsigmoid, one_hot
from .ops.compare import where
from .ops.creation import as_tensor
from .ops.elementwise import clamp, log, log1p
from .ops.gamma import digamma, lgamma
from .ops.random import (
    bernoulli,
    default_generator,
    multinomial,
    numpy_generator,
    poisson,
    rand,
    randn,
)
from .ops.rare import xlogy
from .ops.shape import broadcast_tensors
from .tensor import Size, Tensor

__all__ = [
    "Bernoulli", "Beta", "Binomial", "Categorical", "Dirichlet", "Distribution", "Exponential",
    "Gamma", "Geometric", "Laplace", "LogNormal", "Multinomial", "Normal", "OneHotCategorical",
    "Poisson", "Uniform", "kl_divergence",
]  # fmt: skip

Shape = Sequence[int]


def _parameters(*values: Any) -> tuple[Tensor, ...]:
    """The values as floating tensors of one shape."""
    given = [v for v in values if isinstance(v, Tensor)]
    device = next((v.device for v in given if v.is_cuda), None)
    tensors = [v if isinstance(v, Tensor) else as_tensor(v, device=device) for v in values]
    floats = [t if is_floating(t.dtype) else t.to(get_default_dtype()) for t in tensors]
    result: tuple[Tensor, ...] = tuple(broadcast_tensors(*floats))
    return result


_CONSTRAINTS: dict[str, Callable[[Any], Any]] = {
    "real": np.isfinite,
    "positive": lambda x: x > 0,
    "not negative": lambda x: x >= 0,
    "a probability": lambda x: (x >= 0) & (x <= 1),
    "0 or 1": lambda x: (x == 0) | (x == 1),
    "a whole number >= 0": lambda x: (x >= 0) & (x == np.floor(x)),
    "not NaN": lambda x: ~np.isnan(x),
}


def _draw(shape: Shape, sampler: Callable[..., Array], *parameters: Tensor) -> Tensor:
    """`shape` numbers of sampler(NumPy's generator, arrays of the parameters) on the CPU.

    The generator is on a stream of the default one. Dtype and device are the last parameter's.
    """
    rng = numpy_generator(default_generator, math.prod(shape))
    values = sampler(rng, *(on_host(p.array) for p in parameters))
    last = parameters[-1].array
    return wrap(like(np.asarray(values).astype(last.dtype), last))


class Distribution:
    """What all have in common.

    Attributes:
        batch_shape: of the parameters.
        event_shape: of one draw.
        has_rsample: does `rsample` give draws that depend on the parameters differentiably?
    """

    has_rsample = False
    arg_constraints: Mapping[str, str] = MappingProxyType({})
    batch_shape: Size
    event_shape: Size

    def __init__(self, batch_shape: Shape, event_shape: Shape, validate_args: bool | None) -> None:
        self.batch_shape, self.event_shape = Size(batch_shape), Size(event_shape)
        self._validate = validate_args is not False
        if self._validate:
            for name, constraint in self.arg_constraints.items():
                self._check(name, getattr(self, name).array, constraint)

    def _check(self, name: str, x: Array, constraint: str) -> None:
        ok = _CONSTRAINTS[constraint](x)
        if not np.all(ok):
            raise ValueError(
                f"{type(self).__name__}: {name} must be {constraint}, got {x[~ok].ravel()[:3]}"
            )

    def _value(self, value: Any, constraint: str) -> Tensor:
        """The argument of `log_prob`, checked."""
        tensor = value if isinstance(value, Tensor) else as_tensor(value)
        if self._validate:
            self._check("value", tensor.array, constraint)
        return tensor

    def _shape(self, sample_shape: Shape) -> tuple[int, ...]:
        return (*sample_shape, *self.batch_shape, *self.event_shape)

    def _no(self, what: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} has no {what}")

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draws [*sample_shape, *batch_shape, *event_shape], without a gradient."""
        with no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draws as a differentiable function of the parameters."""
        raise self._no("reparameterised samples")

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the density or probability at `value`, summed over the event."""
        raise self._no("log_prob")

    def entropy(self) -> Tensor:
        """In nats, [*batch_shape]."""
        raise self._no("entropy")

    def cdf(self, value: Tensor) -> Tensor:
        """P(X <= value)."""
        raise self._no("cdf")

    @property
    def mean(self) -> Tensor:
        raise self._no("mean")

    @property
    def variance(self) -> Tensor:
        raise self._no("variance")

    @property
    def stddev(self) -> Tensor:
        return self.variance.sqrt()

    def __repr__(self) -> str:
        names = [n for n in self.arg_constraints if n in vars(self)]
        parts = [
            f"{n}: {getattr(self, n) if getattr(self, n).numel() == 1 else getattr(self, n).size()}"
            for n in names
        ]
        return f"{type(self).__name__}({', '.join(parts)})"


# ---- on the real line ----


class Normal(Distribution):
    """exp(-(x - loc)^2 / (2 scale^2)) / (scale sqrt(2 pi))."""

    has_rsample = True
    arg_constraints: Mapping[str, str] = MappingProxyType({"loc": "real", "scale": "positive"})

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None) -> None:
        self.loc, self.scale = _parameters(loc, scale)
        super().__init__(self.loc.shape, (), validate_args)

    mean = property(lambda self: self.loc)
    mode = property(lambda self: self.loc)
    stddev = property(lambda self: self.scale)
    variance = property(lambda self: self.scale**2)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        noise = randn(*self._shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + noise * self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        z = (self._value(value, "real") - self.loc) / self.scale
        return -0.5 * z * z - self.scale.log() - 0.5 * math.log(2 * math.pi)

    def cdf(self, value: Tensor) -> Tensor:
        z = (self._value(value, "not NaN") - self.loc) / (self.scale * math.sqrt(2))
        return 0.5 * (1 + z.erf())

    def entropy(self) -> Tensor:
        return self.scale.log() + 0.5 * (1 + math.log(2 * math.pi))


class LogNormal(Normal):
    """exp of a normal number."""

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return super().rsample(sample_shape).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        logarithm = self._value(value, "positive").log()
        return super().log_prob(logarithm) - logarithm

    def cdf(self, value: Tensor) -> Tensor:
        return super().cdf(self._value(value, "positive").log())

    def entropy(self) -> Tensor:
        return super().entropy() + self.loc

    mean = property(lambda self: (self.loc + 0.5 * self.scale**2).exp())
    mode = property(lambda self: (self.loc - self.scale**2).exp())
    variance = property(lambda self: (self.scale**2).expm1() * (2 * self.loc + self.scale**2).exp())
    stddev = property(lambda self: self.variance.sqrt())


class Laplace(Distribution):
    """exp(-|x - loc| / scale) / (2 scale)."""

    has_rsample = True
    arg_constraints: Mapping[str, str] = MappingProxyType({"loc": "real", "scale": "positive"})

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None) -> None:
        self.loc, self.scale = _parameters(loc, scale)
        super().__init__(self.loc.shape, (), validate_args)

    mean = property(lambda self: self.loc)
    mode = property(lambda self: self.loc)
    variance = property(lambda self: 2 * self.scale**2)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        u = rand(*self._shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device) - 0.5
        return self.loc - self.scale * u.sign() * log1p(-2 * clamp(u.abs(), max=0.49999997))

    def log_prob(self, value: Tensor) -> Tensor:
        distance = (self._value(value, "real") - self.loc).abs()
        return -(2 * self.scale).log() - distance / self.scale

    def cdf(self, value: Tensor) -> Tensor:
        z = (self._value(value, "not NaN") - self.loc) / self.scale
        return 0.5 - 0.5 * z.sign() * (-z.abs()).expm1()

    def entropy(self) -> Tensor:
        return 1 + (2 * self.scale).log()


class Uniform(Distribution):
    """1 / (high - low) between low and high."""

    has_rsample = True
    arg_constraints: Mapping[str, str] = MappingProxyType({"low": "real", "high": "real"})

    def __init__(self, low: Any, high: Any, validate_args: bool | None = None) -> None:
        self.low, self.high = _parameters(low, high)
        super().__init__(self.low.shape, (), validate_args)
        if self._validate and not (self.low.array < self.high.array).all():
            raise ValueError("Uniform: low must be below high")

    mean = property(lambda self: (self.low + self.high) / 2)
    variance = property(lambda self: (self.high - self.low) ** 2 / 12)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        u = rand(*self._shape(sample_shape), dtype=self.low.dtype, device=self.low.device)
        return self.low + u * (self.high - self.low)

    def log_prob(self, value: Tensor) -> Tensor:
        x = self._value(value, "not NaN")
        inside = (x >= self.low).logical_and(x < self.high)
        return where(inside, -(self.high - self.low).log(), -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        x = self._value(value, "not NaN")
        return clamp((x - self.low) / (self.high - self.low), 0, 1)

    def entropy(self) -> Tensor:
        return (self.high - self.low).log()


class Exponential(Distribution):
    """rate exp(-rate x), x >= 0."""

    has_rsample = True
    arg_constraints: Mapping[str, str] = MappingProxyType({"rate": "positive"})

    def __init__(self, rate: Any, validate_args: bool | None = None) -> None:
        (self.rate,) = _parameters(rate)
        super().__init__(self.rate.shape, (), validate_args)

    mean = property(lambda self: 1 / self.rate)
    variance = property(lambda self: self.rate**-2)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        u = rand(*self._shape(sample_shape), dtype=self.rate.dtype, device=self.rate.device)
        return -log1p(-u) / self.rate

    def log_prob(self, value: Tensor) -> Tensor:
        return self.rate.log() - self.rate * self._value(value, "not negative")

    def cdf(self, value: Tensor) -> Tensor:
        return -(-self.rate * self._value(value, "not negative")).expm1()

    def entropy(self) -> Tensor:
        return 1 - self.rate.log()


class Gamma(Distribution):
    """rate^a x^(a - 1) exp(-rate x) / Gamma(a), a the concentration."""

    arg_constraints: Mapping[str, str] = MappingProxyType(
        {"concentration": "positive", "rate": "positive"}
    )

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None) -> None:
        self.concentration, self.rate = _parameters(concentration, rate)
        super().__init__(self.rate.shape, (), validate_args)

    mean = property(lambda self: self.concentration / self.rate)
    variance = property(lambda self: self.concentration / self.rate**2)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._shape(sample_shape)

        def draw(rng: np.random.Generator, rate: Array, a: Array) -> Array:
            return np.asarray(rng.standard_gamma(a, shape) / rate)

        return _draw(shape, draw, self.rate, self.concentration)

    def log_prob(self, value: Tensor) -> Tensor:
        a, x = self.concentration, self._value(value, "not negative")
        return xlogy(a, self.rate) + xlogy(a - 1, x) - self.rate * x - lgamma(a)

    def entropy(self) -> Tensor:
        a = self.concentration
        return a - self.rate.log() + lgamma(a) + (1 - a) * digamma(a)


class Dirichlet(Distribution):
    """Probabilities [..., K] with density prod x_k^(a_k - 1) / B(a)."""

    arg_constraints: Mapping[str, str] = MappingProxyType({"concentration": "positive"})

    def __init__(self, concentration: Tensor, validate_args: bool | None = None) -> None:
        (self.concentration,) = _parameters(concentration)
        shape = tuple(self.concentration.shape)
        if not shape:
            raise ValueError("Dirichlet: concentration must have one dimension at least")
        super().__init__(shape[:-1], shape[-1:], validate_args)

    @property
    def mean(self) -> Tensor:
        return self.concentration / self.concentration.sum(-1, keepdim=True)

    @property
    def variance(self) -> Tensor:
        total = self.concentration.sum(-1, keepdim=True)
        return self.concentration * (total - self.concentration) / (total**2 * (total + 1))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._shape(sample_shape)

        def draw(rng: np.random.Generator, a: Array) -> Array:
            x = rng.standard_gamma(a, shape)
            x = np.maximum(x, np.finfo(np.float64).tiny)
            return np.asarray(x / x.sum(-1, keepdims=True))

        return _draw(shape, draw, self.concentration)

    def log_prob(self, value: Tensor) -> Tensor:
        a, x = self.concentration, self._value(value, "a probability")
        return xlogy(a - 1, x).sum(-1) + lgamma(a.sum(-1)) - lgamma(a).sum(-1)

    def entropy(self) -> Tensor:
        a = self.concentration
        total, k = a.sum(-1), a.shape[-1]
        spread = ((a - 1) * digamma(a)).sum(-1)
        return lgamma(a).sum(-1) - lgamma(total) - (k - total) * digamma(total) - spread


class Beta(Distribution):
    """x^(a - 1) (1 - x)^(b - 1) / B(a, b)."""

    arg_constraints: Mapping[str, str] = MappingProxyType(
        {"concentration1": "positive", "concentration0": "positive"}
    )

    def __init__(
        self, concentration1: Any, concentration0: Any, validate_args: bool | None = None
    ) -> None:
        self.concentration1, self.concentration0 = _parameters(concentration1, concentration0)
        super().__init__(self.concentration1.shape, (), validate_args)

    mean = property(lambda self: self.concentration1 / (self.concentration1 + self.concentration0))

    @property
    def variance(self) -> Tensor:
        a, b = self.concentration1, self.concentration0
        return a * b / ((a + b) ** 2 * (a + b + 1))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._shape(sample_shape)
        parameters = self.concentration1, self.concentration0
        return _draw(shape, lambda rng, a, b: rng.beta(a, b, shape), *parameters)

    def _log_beta(self) -> Tensor:
        a, b = self.concentration1, self.concentration0
        return lgamma(a) + lgamma(b) - lgamma(a + b)

    def log_prob(self, value: Tensor) -> Tensor:
        x = self._value(value, "a probability")
        a, b = self.concentration1, self.concentration0
        return xlogy(a - 1, x) + xlogy(b - 1, 1 - x) - self._log_beta()

    def entropy(self) -> Tensor:
        a, b = self.concentration1, self.concentration0
        mixed = (a + b - 2) * digamma(a + b)
        return self._log_beta() - (a - 1) * digamma(a) - (b - 1) * digamma(b) + mixed


# ---- discrete ----


def _one_of(name: str, probs: Any, logits: Any) -> bool:
    """Were probabilities given, and not logits?"""
    if (probs is None) == (logits is None):
        raise ValueError(f"{name}: Either `probs` or `logits` must be specified, but not both.")
    return probs is not None


_SMALL = {4: float(np.finfo(np.float32).eps), 8: float(np.finfo(np.float64).eps)}


def _clamped(probs: Tensor) -> Tensor:
    eps = _SMALL.get(probs.dtype.itemsize, 2.0**-8)
    return clamp(probs, eps, 1 - eps)


class _OfChance(Distribution):
    """probs or logits = log(probs / (1 - probs)), whichever was given; the other follows."""

    def __init__(self, probs: Any, logits: Any, validate_args: bool | None) -> None:
        given = _one_of(type(self).__name__, probs, logits)
        (parameter,) = _parameters(probs if given else logits)
        self._given, self._parameter = given, parameter
        self.arg_constraints = {"probs": "a probability"} if given else {"logits": "real"}
        super().__init__(parameter.shape, (), validate_args)

    @property
    def probs(self) -> Tensor:
        return self._parameter if self._given else self._parameter.sigmoid()

    @property
    def logits(self) -> Tensor:
        if not self._given:
            return self._parameter
        p = _clamped(self._parameter)
        return log(p) - log1p(-p)

    def __repr__(self) -> str:
        name, x = ("probs" if self._given else "logits"), self._parameter
        return f"{type(self).__name__}({name}: {x if x.numel() == 1 else x.size()})"


class Bernoulli(_OfChance):
    """1 with probability `probs`, else 0."""

    def __init__(
        self, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        super().__init__(probs, logits, validate_args)

    mean = property(lambda self: self.probs)
    variance = property(lambda self: self.probs * (1 - self.probs))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with no_grad():
            return bernoulli(self.probs.expand(*self._shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        x = self._value(value, "0 or 1")
        logits, x = broadcast_tensors(self.logits, x)
        return -binary_cross_entropy_with_logits(logits, x.to(logits.dtype), reduction="none")

    def entropy(self) -> Tensor:
        return binary_cross_entropy_with_logits(self.logits, self.probs, reduction="none")


class Geometric(_OfChance):
    """The number of failures before the first success: probs (1 - probs)^k."""

    def __init__(
        self, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        super().__init__(probs, logits, validate_args)
        if self._validate and not (self.probs.array > 0).all():
            raise ValueError("Geometric: probs must be positive")

    mean = property(lambda self: 1 / self.probs - 1)
    variance = property(lambda self: (1 / self.probs - 1) / self.probs)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._shape(sample_shape)

        def draw(rng: np.random.Generator, p: Array) -> Array:
            return np.asarray(rng.geometric(p.astype(np.float64), shape) - 1)

        return _draw(shape, draw, self.probs)

    def log_prob(self, value: Tensor) -> Tensor:
        x = self._value(value, "a whole number >= 0")
        return xlogy(x, 1 - self.probs) + self.probs.log()

    def entropy(self) -> Tensor:
        return Bernoulli(logits=self.logits).entropy() / self.probs


class Binomial(_OfChance):
    """The number of successes of `total_count` trials."""

    def __init__(
        self, total_count: Any = 1, probs: Any = None, logits: Any = None,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        given = _one_of("Binomial", probs, logits)
        self.total_count, parameter = _parameters(total_count, probs if given else logits)
        super().__init__(parameter if given else None, None if given else parameter, validate_args)
        if self._validate:
            self._check("total_count", self.total_count.array, "a whole number >= 0")

    mean = property(lambda self: self.total_count * self.probs)
    variance = property(lambda self: self.mean * (1 - self.probs))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._shape(sample_shape)

        def draw(rng: np.random.Generator, n: Array, p: Array) -> Array:
            return np.asarray(rng.binomial(n.astype(np.int64), p.astype(np.float64), shape))

        return _draw(shape, draw, self.total_count, self.probs)

    def log_prob(self, value: Tensor) -> Tensor:
        x, n = self._value(value, "a whole number >= 0"), self.total_count
        if self._validate and (x.array > n.array).any():
            raise ValueError("Binomial: value must be at most total_count")
        ways = lgamma(n + 1) - lgamma(x + 1) - lgamma(n - x + 1)
        logits = self.logits
        return ways + x * logsigmoid(logits) + (n - x) * logsigmoid(-logits)


class _OfCategories(Distribution):
    """Weights [..., K] as probs (normalised) or logits."""

    def __init__(
        self, probs: Any, logits: Any, event_shape: Shape, validate_args: bool | None
    ) -> None:
        given = _one_of(type(self).__name__, probs, logits)
        (parameter,) = _parameters(probs if given else logits)
        if parameter.ndim < 1:
            raise ValueError(f"{type(self).__name__}: weights must have one dimension at least")
        if given:
            self._check("probs", parameter.array, "not negative")
            self.probs = parameter / parameter.sum(-1, keepdim=True)
            self.logits = log(_clamped(self.probs))
        else:
            self.logits = log_softmax(parameter, -1)
            self.probs = self.logits.exp()
        self.arg_constraints = {"probs": "not NaN"} if given else {"logits": "not NaN"}
        super().__init__(parameter.shape[:-1], event_shape, validate_args)

    def _labels(self, sample_shape: Shape) -> Tensor:
        """Category numbers [*sample_shape, *batch_shape]."""
        k, count = self.probs.shape[-1], math.prod(sample_shape)
        shape = (*sample_shape, *self.batch_shape)
        if math.prod(shape) == 0:
            return wrap(np.empty(shape, np.int64))
        with no_grad():
            rows = multinomial(self.probs.reshape(-1, k), count, True)
            return rows.T.reshape(*shape)

    def entropy(self) -> Tensor:
        return -(self.probs * self.logits).sum(-1)


class Categorical(_OfCategories):
    """A category number 0 ... K - 1."""

    def __init__(
        self, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        super().__init__(probs, logits, (), validate_args)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self._labels(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        x = self._value(value, "a whole number >= 0").to(np.int64)
        k = self.logits.shape[-1]
        if self._validate and (x.array >= k).any():
            raise ValueError(f"Categorical: value must be below {k}")
        shape = np.broadcast_shapes(x.shape, self.logits.shape[:-1])
        logits = self.logits.expand(*shape, k)
        return logits.gather(-1, x.expand(*shape).unsqueeze(-1)).squeeze(-1)


class OneHotCategorical(_OfCategories):
    """A category as a vector [K] with one 1."""

    def __init__(
        self, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        given = probs if probs is not None else logits
        k = np.shape(given.array if isinstance(given, Tensor) else given)[-1:]
        super().__init__(probs, logits, k, validate_args)

    mean = property(lambda self: self.probs)
    variance = property(lambda self: self.probs * (1 - self.probs))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        labels = self._labels(sample_shape)
        return one_hot(labels, self.probs.shape[-1]).to(self.probs.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return (self._value(value, "0 or 1") * self.logits).sum(-1)


class Multinomial(_OfCategories):
    """How often each of K categories comes up in `total_count` trials."""

    def __init__(
        self, total_count: int = 1, probs: Any = None, logits: Any = None,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        if isinstance(total_count, bool) or not isinstance(total_count, (int, np.integer)):
            raise NotImplementedError("Multinomial: total_count must be an int")
        self.total_count = int(total_count)
        given = probs if probs is not None else logits
        k = np.shape(given.array if isinstance(given, Tensor) else given)[-1:]
        super().__init__(probs, logits, k, validate_args)

    mean = property(lambda self: self.probs * self.total_count)
    variance = property(lambda self: self.total_count * self.probs * (1 - self.probs))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._shape(sample_shape)

        def draw(rng: np.random.Generator, p: Array) -> Array:
            p = p.astype(np.float64)
            return rng.multinomial(self.total_count, p / p.sum(-1, keepdims=True), shape[:-1])

        return _draw(shape, draw, self.probs)

    def log_prob(self, value: Tensor) -> Tensor:
        x = self._value(value, "a whole number >= 0")
        if self._validate and (x.array.sum(-1) != self.total_count).any():
            raise ValueError(f"Multinomial: counts must add up to {self.total_count}")
        x = x.to(self.logits.dtype)
        logits = where((x == 0).logical_and(self.logits == -math.inf), 0.0, self.logits)
        ways = lgamma(x.sum(-1) + 1) - lgamma(x + 1).sum(-1)
        return ways + (x * logits).sum(-1)

    def entropy(self) -> Tensor:
        n = self.total_count
        counts = wrap(np.arange(1.0, n + 1).astype(self.probs.dtype)[:, None])
        each = Binomial(n, logits=None, probs=self.probs.unsqueeze(-2))  # of one category
        expected = (each.log_prob(counts).exp() * lgamma(counts + 1)).sum((-2, -1))
        return n * super().entropy() - math.lgamma(n + 1) + expected


class Poisson(Distribution):
    """rate^k exp(-rate) / k!."""

    arg_constraints: Mapping[str, str] = MappingProxyType({"rate": "not negative"})

    def __init__(self, rate: Any, validate_args: bool | None = None) -> None:
        (self.rate,) = _parameters(rate)
        super().__init__(self.rate.shape, (), validate_args)

    mean = property(lambda self: self.rate)
    variance = property(lambda self: self.rate)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with no_grad():
            return poisson(self.rate.expand(*self._shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        x = self._value(value, "a whole number >= 0")
        return xlogy(x, self.rate) - self.rate - lgamma(x + 1)


# ---- divergence ----


def _kl_normal(p: Normal, q: Normal) -> Tensor:
    ratio = (p.scale / q.scale) ** 2
    distance = ((p.loc - q.loc) / q.scale) ** 2
    return 0.5 * (ratio + distance - 1 - ratio.log())


def _kl_bernoulli(p: Bernoulli, q: Bernoulli) -> Tensor:
    a, b = p.probs, q.probs
    return xlogy(a, a) - xlogy(a, b) + xlogy(1 - a, 1 - a) - xlogy(1 - a, 1 - b)


def _kl_categories(p: _OfCategories, q: _OfCategories) -> Tensor:
    return (p.probs * (p.logits - q.logits)).sum(-1)


def _kl_exponential(p: Exponential, q: Exponential) -> Tensor:
    ratio = q.rate / p.rate
    return ratio - 1 - ratio.log()


def _kl_gamma(p: Gamma, q: Gamma) -> Tensor:
    a, b = p.concentration, q.concentration
    shape = lgamma(b) - lgamma(a) + (a - b) * digamma(a)
    return shape + b * (p.rate / q.rate).log() + a * (q.rate / p.rate - 1)


def _kl_dirichlet(p: Dirichlet, q: Dirichlet) -> Tensor:
    a, b = p.concentration, q.concentration
    total = a.sum(-1)
    sizes = lgamma(total) - lgamma(b.sum(-1)) - (lgamma(a) - lgamma(b)).sum(-1)
    return sizes + ((a - b) * (digamma(a) - digamma(total).unsqueeze(-1))).sum(-1)


def _kl_beta(p: Beta, q: Beta) -> Tensor:
    a, b, total = p.concentration1, p.concentration0, p.concentration1 + p.concentration0
    c, d = q.concentration1, q.concentration0
    mixed = (c - a + d - b) * digamma(total)
    return q._log_beta() - p._log_beta() + (a - c) * digamma(a) + (b - d) * digamma(b) + mixed


def _kl_poisson(p: Poisson, q: Poisson) -> Tensor:
    return xlogy(p.rate, p.rate) - xlogy(p.rate, q.rate) - p.rate + q.rate


def _kl_uniform(p: Uniform, q: Uniform) -> Tensor:
    inside = (q.low <= p.low).logical_and(p.high <= q.high)
    return where(inside, ((q.high - q.low) / (p.high - p.low)).log(), math.inf)


_KL: dict[type, Callable[[Any, Any], Tensor]] = {
    Normal: _kl_normal,
    LogNormal: _kl_normal,
    Bernoulli: _kl_bernoulli,
    Categorical: _kl_categories,
    OneHotCategorical: _kl_categories,
    Exponential: _kl_exponential,
    Gamma: _kl_gamma,
    Dirichlet: _kl_dirichlet,
    Beta: _kl_beta,
    Poisson: _kl_poisson,
    Uniform: _kl_uniform,
}


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """KL(p || q) = E_p[log p - log q], for two distributions of one kind. D2L section 22.11.4.

    Raises:
        NotImplementedError: no formula for this pair.
    """
    if type(p) is not type(q) or type(p) not in _KL:
        raise NotImplementedError(
            f"kl_divergence: no formula for {type(p).__name__} and {type(q).__name__}"
        )
    return _KL[type(p)](p, q)
