"""Random numbers: a seed and a position in the Philox stream. Kernels: csrc/cpu/random.cpp.

Element i of a draw is a pure function of (seed, offset, i), so results do not depend on threads,
and a backward pass can make the numbers of its forward again. Uniform and normal numbers come from
the kernels; rarer distributions from NumPy's Philox generator, keyed by the same seed and offset.
D2L section 2.6.
"""

from __future__ import annotations

import operator
import os
import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .._cpu import TensorBase, bump, grad_enabled, wrap
from ..backend import Array, as_storage, bfloat16, is_capturing, kernels, like
from ..backend import empty as empty_array
from ..dtypes import as_dtype, get_default_dtype, is_floating, result_dtype
from ..tensor import Tensor, assign, check_device, check_writable, expect_tensor, method
from ..tensor import device as device_type
from .creation import finish, sizes
from .shape import through_host

__all__ = [
    "Generator", "bernoulli", "default_generator", "get_rng_state", "initial_seed", "manual_seed",
    "multinomial", "normal", "poisson", "rand", "rand_like", "randint", "randint_like", "randn",
    "randn_like", "randperm", "seed", "set_rng_state",
]  # fmt: skip

_DEFAULT_SEED = 67280421310721  # of a new Generator, as in PyTorch
_STATE = struct.Struct("<QQ")
_SIGNIFICAND_BITS = {np.dtype(np.float16): 11, bfloat16: 8}


# ---- generators ----


class Generator:
    """A stream of random numbers: a 64-bit seed and how much of its stream is used up.

    A new one starts from a fixed seed; `manual_seed` or `seed` change it. Safe to share between
    threads: every draw reserves its own piece of the stream.
    """

    __slots__ = ("_device", "_lock", "_offset", "_seed")

    def __init__(self, device: Any = "cpu") -> None:
        check_device("Generator", device)
        self._device = "cpu"
        self._lock = threading.Lock()
        self._seed, self._offset = _DEFAULT_SEED, 0

    @property
    def device(self) -> Any:
        """Where the generator lives."""
        return device_type(self._device)

    def manual_seed(self, seed: int) -> Generator:
        """Starts the stream of `seed`, -2**63 to 2**64 - 1 (negative ones count from 2**64)."""
        try:
            value = operator.index(seed)
        except TypeError:
            raise TypeError(
                f"manual_seed: seed must be an int, got {type(seed).__name__}"
            ) from None
        if not -(2**63) <= value < 2**64:
            raise RuntimeError(f"manual_seed: seed must be in [-2**63, 2**64), got {value}")
        with self._lock:
            self._seed, self._offset = value % 2**64, 0
        return self

    def seed(self) -> int:
        """Starts a stream with a seed from the operating system and returns that seed."""
        value = int.from_bytes(os.urandom(8), "little")
        self.manual_seed(value)
        return value

    def initial_seed(self) -> int:
        """The seed of the current stream."""
        return self._seed

    def get_state(self) -> Tensor:
        """Seed and position, as 16 bytes of dtype uint8."""
        with self._lock:
            data = _STATE.pack(self._seed, self._offset)
        state: Tensor = wrap(np.frombuffer(data, dtype=np.uint8).copy())
        return state

    def set_state(self, new_state: Tensor) -> Generator:
        """Goes back to what `get_state` returned."""
        array = expect_tensor("set_state", "new_state", new_state)
        if array.dtype != np.uint8 or array.shape != (_STATE.size,):
            raise RuntimeError(
                f"set_state: expected {_STATE.size} bytes of dtype uint8 from get_state, got shape "
                f"{list(array.shape)} and dtype {array.dtype}"
            )
        with self._lock:
            self._seed, self._offset = _STATE.unpack(array.tobytes())
        return self

    def take(self, n: int) -> tuple[int, int]:
        """Reserves n elements of the stream: (seed, offset), both in int64, for a kernel.

        Offsets are multiples of 4, since one Philox block makes four 32-bit numbers.
        """
        if is_capturing():
            raise RuntimeError(
                "random numbers in a CUDA graph would be the same in every replay: leave dropout "
                "and sampling out of what is captured"
            )
        with self._lock:
            offset = self._offset
            self._offset = (offset + n + 3 & -4) % 2**63
            seed = self._seed
        return (seed if seed < 2**63 else seed - 2**64), offset

    def __getstate__(self) -> tuple[int, int]:
        return self._seed, self._offset

    def __setstate__(self, state: tuple[int, int]) -> None:
        self.__init__()  # type: ignore[misc]
        self._seed, self._offset = state

    def __repr__(self) -> str:
        return f"<grebe.Generator device={self._device} seed={self._seed} offset={self._offset}>"


default_generator = Generator()
default_generator.seed()


def _after_fork() -> None:
    """A child may be forked while another thread of its parent draws: it needs its own lock."""
    default_generator._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def manual_seed(seed: int) -> Generator:
    """Starts the default generator's stream of `seed`; returns the generator."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Seeds the default generator from the operating system; returns the seed."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of the default generator's current stream."""
    return default_generator.initial_seed()


def get_rng_state() -> Tensor:
    """The state of the default generator."""
    return default_generator.get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Sets the state of the default generator."""
    default_generator.set_state(new_state)


def _generator(name: str, generator: Any) -> Generator:
    if generator is None:
        return default_generator
    if not isinstance(generator, Generator):
        raise TypeError(f"{name}: generator must be a Generator, got {type(generator).__name__}")
    return generator


def numpy_generator(generator: Generator, n: int) -> np.random.Generator:
    """A NumPy generator of its own stream, on `n` reserved elements of `generator`."""
    seed, offset = generator.take(max(n, 1))
    key = np.array([seed % 2**64, offset], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


# ---- filling arrays ----


def _fill(kernel: str, y: Array, generator: Generator, first: float, second: float) -> None:
    """Writes uniform or normal numbers into the floating point array `y`."""
    odd = any(stride % y.itemsize for stride in y.strides)
    aligned = not isinstance(y, np.ndarray) or y.flags.aligned
    direct = y.itemsize >= 4 and aligned and not odd
    work = y if direct else empty_array(y.shape, np.promote_types(y.dtype, np.float32), y)
    getattr(kernels(y), kernel)(work, *generator.take(y.size), first, second)
    if not direct:
        np.copyto(y, work, casting="unsafe")


def _fill_uniform(y: Array, generator: Generator, low: float, high: float) -> None:
    bits = _SIGNIFICAND_BITS.get(y.dtype)
    if bits is None:
        _fill("random_uniform", y, generator, low, high)
        return
    # Rounding a float32 below 1 to 16 bits could give 1: draw on the coarse grid instead.
    fine = empty_array(y.shape, np.dtype(np.float32), y)
    _fill("random_uniform", fine, generator, 0.0, 1.0)
    coarse = np.floor(fine * 2.0**bits) * 2.0**-bits
    np.copyto(y, coarse * (high - low) + low, casting="unsafe")


def _fill_normal(y: Array, generator: Generator, mean: float, std: float) -> None:
    _fill("random_normal", y, generator, mean, std)


def _check_floating(name: str, dtype: Any) -> None:
    if not is_floating(dtype):
        raise RuntimeError(f"{name}: expected a floating point dtype, got {dtype}")


def _check_std(name: str, std: float) -> None:
    if not std >= 0:
        raise RuntimeError(f"{name}: std must not be negative, got {std}")


def _number(name: str, argument: str, value: Any) -> Any:
    if isinstance(value, TensorBase):
        value = value.item()  # type: ignore[attr-defined]
    if not isinstance(value, (bool, int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: {argument} must be a number, got {type(value).__name__}")
    return value


# ---- new tensors ----


def _size(name: str, dims: tuple[Any, ...], size: Any) -> tuple[int, ...]:
    if size is None:
        return sizes(name, dims)
    if dims:
        raise TypeError(f"{name}: sizes given both by position and by size=")
    return sizes(name, (size,))


def _drawn(
    name: str, fill: Callable[..., None], shape: tuple[int, ...], generator: Any, dtype: Any,
    device: Any, requires_grad: bool,
) -> Tensor:  # fmt: skip
    where = check_device(name, device)
    wanted = get_default_dtype() if dtype is None else as_dtype(name, dtype)
    _check_floating(name, wanted)
    y = empty_array(shape, wanted)
    fill(y, _generator(name, generator), 0.0, 1.0)
    return finish(y, requires_grad, where)


def rand(
    *dims: Any, size: Any = None, generator: Generator | None = None, dtype: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Uniform numbers in [0, 1) of shape `size` (ints or a tuple); default dtype float32.

    Raises TypeError for sizes that are no ints, RuntimeError for negative ones or an integer dtype.
    """
    shape = _size("rand", dims, size)
    return _drawn("rand", _fill_uniform, shape, generator, dtype, device, requires_grad)


def randn(
    *dims: Any, size: Any = None, generator: Generator | None = None, dtype: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Standard normal numbers of shape `size` (ints or a tuple); default dtype float32.

    Raises TypeError for sizes that are no ints, RuntimeError for negative ones or an integer dtype.
    """
    shape = _size("randn", dims, size)
    return _drawn("randn", _fill_normal, shape, generator, dtype, device, requires_grad)


def _integers(name: str, generator: Generator, low: int, high: int, shape: Any) -> Array:
    if not -(2**63) <= low < high <= 2**63:
        raise RuntimeError(
            f"{name}: expected -2**63 <= low < high <= 2**63, got low={low} and high={high}"
        )
    count = int(np.prod(shape, dtype=np.int64))
    return np.asarray(numpy_generator(generator, count).integers(low, high, shape))


def _bounds(name: str, low: Any, high: Any) -> tuple[int, int]:
    try:
        return operator.index(low), operator.index(high)
    except TypeError:
        raise TypeError(f"{name}: low and high must be ints, got {low!r} and {high!r}") from None


def randint(
    low: int, high: Any = None, size: Any = None, *, generator: Generator | None = None,
    dtype: Any = None, device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Integers in [low, high), all equally likely; ``randint(high, size)`` starts at 0. int64.

    Raises RuntimeError unless low < high and both fit the dtype, TypeError for other than ints.
    """
    where = check_device("randint", device)
    if size is None and high is not None and not isinstance(high, (int, np.integer)):
        low, high, size = 0, low, high
    elif size is not None and high is None:
        low, high = 0, low
    if size is None or high is None:
        raise TypeError("randint: expected (high, size) or (low, high, size)")
    wanted = np.dtype(np.int64) if dtype is None else as_dtype("randint", dtype)
    bounds = _bounds("randint", low, high)
    _check_holds("randint", wanted, *bounds)
    shape = sizes("randint", (size,))
    values = _integers("randint", _generator("randint", generator), *bounds, shape)
    return finish(values.astype(wanted), requires_grad, where)


def _largest_integer(dtype: Any) -> int:
    """Up to which all integers are exact in `dtype`."""
    if dtype.kind == "b":
        return 1
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).max)
    return int(2 ** _SIGNIFICAND_BITS.get(dtype, 24 if dtype.itemsize == 4 else 53))


def _check_holds(name: str, dtype: Any, low: int, high: int) -> None:
    largest = _largest_integer(dtype)
    smallest = -largest - 1 if dtype.kind == "i" else (-largest if is_floating(dtype) else 0)
    if low < smallest or high - 1 > largest:
        raise RuntimeError(f"{name}: [{low}, {high}) does not fit dtype {dtype}")


def randperm(
    n: int, *, generator: Generator | None = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """A random order of 0 ... n - 1, all orders equally likely; int64."""
    where = check_device("randperm", device)
    (count,) = sizes("randperm", (n,))
    wanted = np.dtype(np.int64) if dtype is None else as_dtype("randperm", dtype)
    _check_holds("randperm", wanted, 0, max(count, 1))
    rng = numpy_generator(_generator("randperm", generator), count)
    return finish(rng.permutation(count).astype(wanted, copy=False), requires_grad, where)


@through_host
def normal(
    mean: Any, std: Any = 1.0, size: Any = None, *, generator: Generator | None = None,
    dtype: Any = None, device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Normal numbers: ``normal(mean, std, size)`` for numbers, or one per element of tensors.

    mean, std: numbers, or tensors that broadcast together (then `size` is not given). Not
    differentiable. Raises RuntimeError for a negative std.
    """
    where = check_device("normal", device)
    source = _generator("normal", generator)
    if size is not None:
        mean, std = _number("normal", "mean", mean), _number("normal", "std", std)
        _check_std("normal", std)
        wanted = get_default_dtype() if dtype is None else as_dtype("normal", dtype)
        _check_floating("normal", wanted)
        y = empty_array(sizes("normal", (size,)), wanted)
        _fill_normal(y, source, mean, std)
        return finish(y, requires_grad, where)
    if not isinstance(mean, TensorBase) and not isinstance(std, TensorBase):
        raise TypeError("normal: mean and std are numbers, so size must be given")
    centre, width = (
        v.array if isinstance(v, TensorBase) else np.asarray(_number("normal", "mean or std", v))
        for v in (mean, std)
    )
    wanted = result_dtype(*(v.array for v in (mean, std) if isinstance(v, TensorBase)))
    _check_floating("normal", wanted)
    if not (width >= 0).all():
        raise RuntimeError("normal: std has negative elements")
    try:
        shape = np.broadcast_shapes(centre.shape, width.shape)
    except ValueError:
        raise RuntimeError(
            f"normal: mean of shape {list(centre.shape)} and std of shape {list(width.shape)} "
            "can't be broadcast together"
        ) from None
    y = empty_array(shape, wanted)
    _fill_normal(y, source, 0.0, 1.0)
    return finish((y * width + centre).astype(wanted, copy=False), requires_grad, where)


def _like(
    name: str, fill: Callable[..., None], input: Tensor, dtype: Any, device: Any,
    requires_grad: bool, generator: Any,
) -> Tensor:  # fmt: skip
    x = expect_tensor(name, "input", input)
    where = check_device(name, input.device if device is None else device)
    y = np.empty_like(x, dtype=as_dtype(name, x.dtype if dtype is None else dtype))
    _check_floating(name, y.dtype)
    fill(y, _generator(name, generator), 0.0, 1.0)
    return finish(y, requires_grad, where)


def rand_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """`rand` in the shape, dtype and memory format of `input`."""
    return _like("rand_like", _fill_uniform, input, dtype, device, requires_grad, generator)


def randn_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """`randn` in the shape, dtype and memory format of `input`."""
    return _like("randn_like", _fill_normal, input, dtype, device, requires_grad, generator)


def randint_like(
    input: Tensor, low: int, high: int | None = None, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False, generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """`randint` in the shape and dtype of `input`."""
    x = expect_tensor("randint_like", "input", input)
    if high is None:
        low, high = 0, low
    return randint(
        low, high, x.shape, generator=generator, dtype=x.dtype if dtype is None else dtype,
        device=device, requires_grad=requires_grad,
    )  # fmt: skip


# ---- draws that depend on a tensor ----


def _check_probabilities(name: str, p: Array) -> None:
    if not ((p >= 0) & (p <= 1)).all():
        raise RuntimeError(f"{name}: probabilities must be in [0, 1]")


def _hits(probability: Array, shape: tuple[int, ...], generator: Generator) -> Array:
    """1 with `probability` (0-d: the same for all), else 0."""
    double = probability.dtype == np.float64 and probability.ndim > 0
    y = empty_array(shape, np.dtype(np.float64 if double else np.float32), probability)
    if probability.ndim == 0:
        kernels(y).random_bernoulli(y, *generator.take(y.size), float(probability))
        return y
    _fill_uniform(y, generator, 0.0, 1.0)
    return as_storage(y < probability)


@method
def bernoulli(
    input: Tensor, p: float | None = None, *, generator: Generator | None = None
) -> Tensor:
    """1 with probability `input` (elementwise; or `p` for all), else 0, in the dtype of `input`.

    Raises RuntimeError for probabilities outside [0, 1]. D2L section 2.6.
    """
    x = expect_tensor("bernoulli", "input", input)
    if p is None:
        _check_floating("bernoulli", x.dtype)
    chance = x if p is None else np.asarray(float(p))
    _check_probabilities("bernoulli", chance)
    drawn = _hits(chance, x.shape, _generator("bernoulli", generator))
    result: Tensor = wrap(like(drawn.astype(x.dtype), x))
    return result


@method
@through_host
def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Indices drawn with probability proportional to the weights in each row of `input`.

    input: floating point [n] or [rows, n], not negative, finite, a positive sum per row. Returns
    int64 [num_samples] or [rows, num_samples]. Without replacement the order is that of successive
    draws (Efraimidis and Spirakis 2006: the smallest of exponential numbers divided by weights).
    """
    x = expect_tensor("multinomial", "input", input)
    _check_floating("multinomial", x.dtype)
    (count,) = sizes("multinomial", (num_samples,))
    if x.ndim not in (1, 2) or not x.shape[-1]:
        raise RuntimeError(
            f"multinomial: input must have shape [n] or [rows, n] with n > 0, got {list(x.shape)}"
        )
    if not count:
        raise RuntimeError("multinomial: num_samples must be positive")
    weights = np.atleast_2d(x).astype(np.float64)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise RuntimeError("multinomial: weights must be finite and not negative")
    available = int(np.count_nonzero(weights, axis=1).min(initial=weights.shape[1]))
    if available == 0:
        raise RuntimeError("multinomial: a row has no positive weight")
    if not replacement and count > available:
        raise RuntimeError(
            f"multinomial: {count} samples without replacement from {available} categories with "
            "positive weight"
        )
    source = _generator("multinomial", generator)
    pick = _with_replacement if replacement else _without_replacement
    picked = pick(weights, count, source)
    result: Tensor = wrap(picked.reshape(x.shape[:-1] + (count,)))
    return result


def _with_replacement(weights: Array, count: int, generator: Generator) -> Array:
    """Inverse transform: where a uniform number falls in the cumulated weights."""
    u = np.empty((len(weights), count))
    _fill_uniform(u, generator, 0.0, 1.0)
    picked = np.empty(u.shape, dtype=np.int64)
    for row, points, target in zip(weights, u, picked, strict=True):
        steps = np.cumsum(row)
        target[:] = np.searchsorted(steps, points * steps[-1], side="right")
        # A product that rounds up to the total would point behind the last positive weight.
        np.minimum(target, np.flatnonzero(row)[-1], out=target)
    return picked


def _without_replacement(weights: Array, count: int, generator: Generator) -> Array:
    u = np.empty(weights.shape)
    _fill_uniform(u, generator, 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(weights > 0, -np.log1p(-u) / weights, np.inf)
    return np.argsort(times, axis=1, kind="stable")[:, :count]


@through_host
def poisson(input: Tensor, generator: Generator | None = None) -> Tensor:
    """Poisson numbers with the rates `input` (elementwise, not negative), in its dtype."""
    x = expect_tensor("poisson", "input", input)
    _check_floating("poisson", x.dtype)
    if not (x >= 0).all():
        raise RuntimeError("poisson: rates must not be negative")
    rng = numpy_generator(_generator("poisson", generator), x.size)
    result: Tensor = wrap(np.asarray(rng.poisson(x.astype(np.float64))).astype(x.dtype))
    return result


# ---- in-place methods ----


def _overwrite(name: str, tensor: Tensor, fill: Callable[[Array], None]) -> Tensor:
    """Lets `fill` write the memory of `tensor`, which does not depend on its past any more."""
    check_writable(name, tensor)
    if grad_enabled() and tensor._requires_grad:
        values = np.empty_like(tensor.array)
        fill(values)
        return assign(name, tensor, wrap(values))
    fill(tensor.array)
    bump(tensor)
    return tensor


def _overwrite_by_numpy(name: str, tensor: Tensor, generator: Any, draw: Any) -> Tensor:
    source = _generator(name, generator)

    def fill(array: Array) -> None:
        values = draw(numpy_generator(source, array.size), array.shape)
        np.copyto(array, like(values, array), casting="unsafe")

    return _overwrite(name, tensor, fill)


@method
def uniform_(
    self: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Overwrites the tensor with uniform numbers in [a, b)."""
    dtype = expect_tensor("uniform_", "self", self).dtype
    _check_floating("uniform_", dtype)
    low, high = float(_number("uniform_", "from", a)), float(_number("uniform_", "to", b))
    if not low <= high or not np.isfinite(high - low):
        raise RuntimeError(f"uniform_: expected finite from <= to, got {low} and {high}")
    source = _generator("uniform_", generator)
    return _overwrite("uniform_", self, lambda y: _fill_uniform(y, source, low, high))


@method
def normal_(
    self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Overwrites the tensor with normal numbers."""
    _check_floating("normal_", expect_tensor("normal_", "self", self).dtype)
    centre, width = float(_number("normal_", "mean", mean)), float(_number("normal_", "std", std))
    _check_std("normal_", width)
    source = _generator("normal_", generator)
    return _overwrite("normal_", self, lambda y: _fill_normal(y, source, centre, width))


@method
def bernoulli_(self: Tensor, p: Any = 0.5, *, generator: Generator | None = None) -> Tensor:
    """Overwrites the tensor with 1 with probability `p` (a number, or a tensor), else 0."""
    x = expect_tensor("bernoulli_", "self", self)
    chance = p.array if isinstance(p, TensorBase) else np.asarray(_number("bernoulli_", "p", p))
    _check_probabilities("bernoulli_", chance)
    if np.broadcast_shapes(chance.shape, x.shape) != x.shape:
        raise RuntimeError(
            f"bernoulli_: p of shape {list(chance.shape)} does not fit shape {list(x.shape)}"
        )
    source = _generator("bernoulli_", generator)

    def fill(array: Array) -> None:
        np.copyto(array, like(_hits(chance, array.shape, source), array), casting="unsafe")

    return _overwrite("bernoulli_", self, fill)


@method
def random_(
    self: Tensor, low: int | None = None, high: int | None = None, *,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Overwrites the tensor with integers in [low, high), all equally likely.

    ``random_(high)`` starts at 0; ``random_()`` goes up to the largest integer of the dtype (2**24
    for float32, 2**53 for float64).
    """
    dtype = expect_tensor("random_", "self", self).dtype
    if high is None:
        low, high = 0, (_largest_integer(dtype) + 1 if low is None else low)
    bounds = _bounds("random_", low, high)
    _check_holds("random_", dtype, *bounds)
    source = _generator("random_", generator)

    def fill(array: Array) -> None:
        drawn = _integers("random_", source, *bounds, array.shape)
        np.copyto(array, like(drawn, array), casting="unsafe")

    return _overwrite("random_", self, fill)


@method
def exponential_(self: Tensor, lambd: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Overwrites the tensor with exponential numbers of rate `lambd`."""
    _check_floating("exponential_", expect_tensor("exponential_", "self", self).dtype)
    if not lambd > 0:
        raise RuntimeError(f"exponential_: lambd must be positive, got {lambd}")
    return _overwrite_by_numpy(
        "exponential_", self, generator, lambda rng, shape: rng.exponential(1 / lambd, shape)
    )


@method
def log_normal_(
    self: Tensor, mean: float = 1.0, std: float = 2.0, *, generator: Generator | None = None
) -> Tensor:
    """Overwrites the tensor with e to the power of normal numbers of `mean` and `std`."""
    _check_floating("log_normal_", expect_tensor("log_normal_", "self", self).dtype)
    _check_std("log_normal_", std)
    return _overwrite_by_numpy(
        "log_normal_", self, generator, lambda rng, shape: rng.lognormal(mean, std, shape)
    )


@method
def geometric_(self: Tensor, p: float, *, generator: Generator | None = None) -> Tensor:
    """Overwrites the tensor with the number of trials until the first success, at least 1."""
    expect_tensor("geometric_", "self", self)
    if not 0 < p <= 1:
        raise RuntimeError(f"geometric_: p must be in (0, 1], got {p}")
    return _overwrite_by_numpy(
        "geometric_", self, generator, lambda rng, shape: rng.geometric(p, shape)
    )


@method
def cauchy_(
    self: Tensor, median: float = 0.0, sigma: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Overwrites the tensor with Cauchy numbers."""
    _check_floating("cauchy_", expect_tensor("cauchy_", "self", self).dtype)
    if not sigma > 0:
        raise RuntimeError(f"cauchy_: sigma must be positive, got {sigma}")
    return _overwrite_by_numpy(
        "cauchy_", self, generator, lambda rng, shape: median + sigma * rng.standard_cauchy(shape)
    )
