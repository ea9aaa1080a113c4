"""The emulator: every function of ptx.cuh against NumPy, bugs that it must catch.

The probes of csrc/cuda/probes.cu get random bits. With ``--device cuda`` they run on a GPU, whose
results are kept in tests/golden and judge the emulator from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grebe import backend

Array = np.ndarray[Any, np.dtype[Any]]
Compare = Callable[[Array, Array], None]

GOLDEN = Path(__file__).parent / "golden"
MODES = [(lazy, seed) for lazy in (True, False) for seed in (0, 1, 2)]


@pytest.fixture(autouse=True)
def kernels(cuda_device: None) -> Any:
    """The module of kernels; emulated ones unless a GPU is asked for."""
    return backend.cuda().kernels


@pytest.fixture
def emulated(kernels: Any) -> Any:
    if not backend.cuda().emulated:
        pytest.skip("bugs are planted under the emulator only")
    return kernels


def launch(name: str, inputs: list[Array], words: int) -> Array:
    """The 32-bit words that the probe makes of `inputs`."""
    device = backend.cuda()
    arrays = [device.to_device(np.ascontiguousarray(x).view(np.int32)) for x in inputs]
    out = device.kernels.empty((words,), np.dtype(np.int32))
    device.kernels.probe(name, arrays, out)
    return device.to_host(out).view(np.uint32)


def exact(got: Array, expected: Array) -> None:
    np.testing.assert_array_equal(got, expected)


def close(tolerance: Array | float) -> Compare:
    """Words as floats that differ by at most `tolerance`; NaN from the same NaN only."""

    def compare(got: Array, expected: Array) -> None:
        x, y = got.view(np.float32).astype(np.float64), expected.view(np.float32).astype(np.float64)
        same = (got == expected) | (np.isnan(x) & np.isnan(y))
        with np.errstate(invalid="ignore"):
            near = np.abs(x - y) <= tolerance
        assert np.all(same | near), f"largest difference {np.nanmax(np.abs(x - y)):.3g}"

    return compare


def expect(
    name: str, inputs: list[Array], expected: Array, compare: Compare = exact, case: str = ""
) -> None:
    """The probe gives `expected`, and what a GPU gave for this case if that is known."""
    expected = np.ascontiguousarray(expected).view(np.uint32).ravel()
    got = launch(name, inputs, expected.size)
    compare(got, expected)
    path = GOLDEN / f"{name}{case}.npz"
    kept = dict(np.load(path)) if path.exists() else {}
    known = kept and all(np.array_equal(kept[f"in{i}"], x) for i, x in enumerate(inputs))
    if known:
        (compare if backend.cuda().emulated else exact)(got, kept["out"])
    elif not backend.cuda().emulated:
        GOLDEN.mkdir(exist_ok=True)
        arrays = {f"in{i}": np.asarray(x) for i, x in enumerate(inputs)}
        np.savez_compressed(path, out=got, **arrays)


def each_mode(kernels: Any) -> Iterator[None]:
    """Under the emulator once in every mode."""
    for lazy, seed in MODES if backend.cuda().emulated else MODES[:1]:
        if backend.cuda().emulated:
            kernels.set_options(lazy=lazy, seed=seed)
        yield


# ---- numbers ----


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng([0, *seed])


def random_words(*shape: int) -> Array:
    return rng(*shape).integers(0, 1 << 32, shape, np.uint32)


def random_floats(*shape: int) -> Array:
    """Random bits with exponents that keep sums of products finite."""
    bits = random_words(*shape) & np.uint32(0x8FFFFFFF)
    return (bits | np.uint32(0x30000000)).view(np.float32)


def bf16_of(words: Array) -> Array:
    return (words.astype(np.uint32) << 16).view(np.float32)


def random_16(kind: str, *shape: int) -> tuple[Array, Array]:
    """Random bits of finite 16-bit numbers, and the numbers."""
    bits = rng(*shape).integers(0, 1 << 16, shape, np.uint16)
    if kind == "bf16":
        bits = (bits & np.uint16(0x8FFF)) | np.uint16(0x3000)
        return bits, bf16_of(bits)
    bits &= np.uint16(0xBFFF)
    return bits, bits.view(np.float16).astype(np.float32)


# ---- all devices ----


def test_copy_async() -> None:
    words, valid = random_words(32, 4), rng().integers(0, 2, 32, np.int32)
    expect("copy_async", [words, valid], np.where(valid[:, None] != 0, words, 0).astype(np.uint32))


@pytest.mark.parametrize("transposed", [False, True])
def test_load_matrices(transposed: bool) -> None:
    memory, rows = random_words(512, 4), rng().permutation(512)[:32].astype(np.int32)
    matrices = memory.view(np.uint16)[rows].reshape(4, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    pairs = np.ascontiguousarray(matrices).view(np.uint32).reshape(4, 32)
    expect("load_matrices" + "_transposed" * transposed, [memory, rows], pairs.T)


def fragments_16(a: Array, b: Array, d: Array) -> tuple[Array, Array, Array]:
    """The registers of each lane for a 16x16, b 16x8 (as bits) and d 16x8."""
    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    pair = np.arange(2)
    left = [a[(g + i % 2 * 8)[:, None], (t * 2 + i // 2 * 8)[:, None] + pair] for i in range(4)]
    right = [b[(t * 2 + i * 8)[:, None] + pair, g[:, None]] for i in range(2)]
    total = [d[g + i // 2 * 8, t * 2 + i % 2] for i in range(4)]
    words = [np.concatenate(x, 1).view(np.uint32) for x in (left, right)]
    return words[0], words[1], np.stack(total, 1)


@pytest.mark.parametrize("kind", ["bf16", "half"])
def test_multiply_16(kind: str) -> None:
    (a_bits, a), (b_bits, b) = random_16(kind, 16, 16), random_16(kind, 16, 8)
    d = random_floats(16, 8)
    exact_sum = d + a.astype(np.float64) @ b
    scale = np.abs(d) + np.abs(a).astype(np.float64) @ np.abs(b)
    left, right, total = fragments_16(a_bits, b_bits, d)
    expected = fragments_16(a_bits, b_bits, exact_sum.astype(np.float32))[2]
    tolerance = fragments_16(a_bits, b_bits, scale)[2].ravel() * 2.0**-20
    expect(f"multiply_{kind}", [left, right, total], expected, close(tolerance))


def cut_to_tf32(x: Array) -> Array:
    """The bits that the tensor core reads."""
    return (x.view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32).astype(np.float64)


def test_multiply_tf32() -> None:
    a, b, d = random_floats(16, 8), random_floats(8, 8), random_floats(16, 8)
    lane = np.arange(32)
    g, t = lane // 4, lane % 4

    def results(x: Array) -> Array:
        return np.stack([x[g + i // 2 * 8, t * 2 + i % 2] for i in range(4)], 1)

    left = np.stack([a[g + i % 2 * 8, t + i // 2 * 4] for i in range(4)], 1)
    right = np.stack([b[t + i * 4, g] for i in range(2)], 1)
    x, y = cut_to_tf32(a), cut_to_tf32(b)
    expected = results((d + x @ y).astype(np.float32))
    tolerance = results(np.abs(d) + np.abs(x) @ np.abs(y)).ravel() * 2.0**-20
    expect("multiply_tf32", [left, right, results(d)], expected, close(tolerance))


SPECIAL = np.array([0, -0.0, 1, -1, np.inf, -np.inf, 1e-45, 1e38, 3.4028235e38], np.float32)


def test_round_tf32() -> None:
    words = random_words(4000)
    words = words[(words & 0x7F800000) != 0x7F800000]  # NaN has many forms
    x = np.concatenate([words.view(np.float32), SPECIAL])
    finite = np.isfinite(x)
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (((bits + 0x1000) >> 13) << 13).astype(np.uint32)  # ties away from zero
    expect("round_tf32", [x], np.where(finite, rounded, x.view(np.uint32)))


def test_exp2_fast() -> None:
    x = np.concatenate([rng().uniform(-130, 129, 4000).astype(np.float32), SPECIAL])
    with np.errstate(over="ignore"):
        y = np.exp2(x.astype(np.float64)).astype(np.float32)
    y[y < np.finfo(np.float32).tiny] = 0
    with np.errstate(invalid="ignore"):
        tolerance = np.nan_to_num(np.abs(y) * 2.0**-22, posinf=0) + 2.0**-126
    expect("exp2_fast", [x], y, close(tolerance))


def test_shuffles() -> None:
    x, source = random_words(32), rng().integers(0, 32, 32, np.int32)
    lane = np.arange(32)
    votes = np.bitwise_or.reduce((x & 1) << lane.astype(np.uint32))
    up, down = np.maximum(lane - 3, lane % 32 * (lane < 3)), np.where(lane > 28, lane, lane + 3)
    expected = [x[source], x[lane ^ 5], x[up], x[down], np.full(32, votes, np.uint32)]
    expect("shuffles", [x, source], np.stack(expected, 1))


def test_grid_barrier(kernels: Any) -> None:
    words = random_words(4, 64)
    expected = words
    for _ in range(3):
        expected = expected + np.roll(expected, -1, 0)
    for _ in each_mode(kernels):
        expect("grid_barrier", [words], expected)


# ---- sm_90a ----


@pytest.fixture
def sm90(kernels: Any) -> Any:
    if not backend.cuda().emulated and backend.cuda().xp.cuda.Device().compute_capability != "90":
        pytest.skip("needs sm_90")
    return kernels


@pytest.mark.parametrize("transposed", [False, True])
def test_store_matrices(sm90: Any, transposed: bool) -> None:
    registers, memory = random_words(32, 4), random_words(512, 4)
    rows = rng().permutation(512)[:32].astype(np.int32)
    matrices = np.ascontiguousarray(registers.T).view(np.uint16).reshape(4, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    expected = memory.copy()
    expected[rows] = np.ascontiguousarray(matrices).reshape(32, 8).view(np.uint32)
    expect("store_matrices" + "_transposed" * transposed, [registers, rows, memory], expected)


def test_barriers_between_threads(sm90: Any) -> None:
    words = random_words(512)
    for _ in each_mode(sm90):
        expect("barrier_sync", [words[:128]], words[:128].reshape(2, 64)[:, ::-1])
        expect("cluster", [words[:128]], np.roll(words[:128].reshape(4, 32), -1, 0))
        expect("arrive_in", [words[:32]], words[:32])
        expect("mbarrier", [words], words)
        expect("registers", [words[:256]], words[:256])


def swizzled(rows: Array) -> Array:
    """Rows of 128 bytes as bulk copies and matrix products lay them out."""
    row = np.arange(rows.shape[0])[:, None]
    chunks = rows.reshape(rows.shape[0], 8, -1)
    return np.ascontiguousarray(chunks[row, np.arange(8) ^ row % 8]).reshape(rows.shape)


# The tensor of probes.cu: shape (3, 20, 50) in a buffer, boxes (2, 8, 32), coordinates x, y, z.
BUFFER = (3, 24, 52)
CORNERS = [(0, 0, 0), (5, 3, 1), (-7, -3, -1), (30, 17, 2), (64, 0, 0)]


def box_indices(corner: tuple[int, int, int]) -> tuple[Array, tuple[Array, Array, Array]]:
    """Which elements of a box lie inside the tensor, and where they are."""
    x, y, z = corner
    at = np.meshgrid(np.arange(z, z + 2), np.arange(y, y + 8), np.arange(x, x + 32), indexing="ij")
    inside = np.all([(i >= 0) & (i < n) for i, n in zip(at, (3, 20, 50), strict=True)], axis=0)
    return inside, (at[0][inside], at[1][inside], at[2][inside])


@pytest.mark.parametrize("corner", CORNERS, ids=str)
def test_tma_load(sm90: Any, corner: tuple[int, int, int]) -> None:
    buffer, at = random_words(*BUFFER), np.array(corner, np.int32)
    inside, where = box_indices(corner)
    box = np.zeros(inside.shape, np.uint32)
    box[inside] = buffer[where]
    flat_inside, flat_where = box_indices((*corner[:2], 0))
    flat = np.zeros((8, 32), np.uint32)
    flat[flat_inside[0]] = buffer[flat_where][: flat_inside[0].sum()]
    case = "".join(f"_{i}" for i in corner)
    for _ in each_mode(sm90):
        expect("tma_load_3d", [buffer, at], swizzled(box.reshape(16, 32)), case=case)
        expect("tma_load_2d", [buffer, at], swizzled(flat), case=case)
        expect("tma_load_plain", [buffer, at], flat, case=case)
        both = np.stack([swizzled(box.reshape(16, 32))] * 2)
        expect("tma_load_multicast", [buffer, at], both, case=case)


def test_tma_load_of_four_dimensions(sm90: Any) -> None:
    buffer = random_words(2, *BUFFER)
    for i, corner in enumerate(CORNERS):
        inside, where = box_indices(corner)
        box = np.zeros(inside.shape, np.uint32)
        box[inside] = buffer[1][where]
        at = np.array([*corner, 1], np.int32)
        for _ in each_mode(sm90):
            expect("tma_load_4d", [buffer, at], swizzled(box.reshape(16, 32)), case=f"_{i}")


@pytest.mark.parametrize("corner", CORNERS, ids=str)
def test_tma_store(sm90: Any, corner: tuple[int, int, int]) -> None:
    box, at = random_words(2, 8, 32), np.array(corner, np.int32)
    inside, where = box_indices(corner)
    expected = np.zeros(BUFFER, np.uint32)
    expected[where] = box[inside]
    flat_inside, flat_where = box_indices((*corner[:2], 0))
    count = flat_inside[0].sum()
    flat = np.zeros(BUFFER, np.uint32)
    flat[tuple(i[:count] for i in flat_where)] = box[0][flat_inside[0]]
    case = "".join(f"_{i}" for i in corner)
    for _ in each_mode(sm90):
        expect("tma_store_3d", [swizzled(box.reshape(16, 32)), at], expected, case=case)
        expect("tma_store_2d", [swizzled(box[0]), at], flat, case=case)


# The images of probes.cu: (3, 5, 7, 40), filters of 3x3 at steps of 2 along x and 1 along y.
STARTS = [(0, -1, -1, 0, 0, 0), (0, 1, 2, 0, 2, 1), (8, 5, 3, 1, 1, 2), (32, 3, 0, 2, 0, 2)]


@pytest.mark.parametrize("start", STARTS, ids=str)
def test_tma_load_pixels(sm90: Any, start: tuple[int, ...]) -> None:
    images = random_words(3, 5, 7, 40)
    channel, x, y, image, dx, dy = start
    padded = np.zeros((6, 7, 9, 72), np.uint32)  # images behind the last are zeros
    padded[:3, 1:-1, 1:-1, :40] = images
    places = [(n, v, u) for n in range(6) for v in range(-1, 4) for u in range(-1, 6, 2)]
    first = places.index((image, y, x))
    pixels = [
        padded[n, v + dy + 1, u + dx + 1, channel : channel + 32]
        for n, v, u in places[first : first + 48]
    ]
    at = np.array(start, np.int32)
    case = "".join(f"_{i}" for i in start)
    for _ in each_mode(sm90):
        expect("tma_load_pixels", [images, at], swizzled(np.stack(pixels)), case=case)


@pytest.mark.parametrize("corner", CORNERS, ids=str)
def test_tma_add(sm90: Any, corner: tuple[int, int, int]) -> None:
    # Whole numbers: sums are the same in any order.
    box = rng(1).integers(-99, 99, (8, 32)).astype(np.float32)
    tensor = rng(2).integers(-99, 99, BUFFER).astype(np.float32)
    inside, where = box_indices((*corner[:2], 0))
    count = inside[0].sum()
    expected = tensor.copy()
    expected[tuple(i[:count] for i in where)] += 3 * box[inside[0]]
    at = np.array([*corner[:2]], np.int32)
    case = "".join(f"_{i}" for i in corner)
    for _ in each_mode(sm90):
        expect("tma_add", [swizzled(box), at, tensor], expected, case=case)


@pytest.mark.parametrize("columns", [64, 128, 256])
def test_wgmma_tf32(sm90: Any, columns: int) -> None:
    a, b, d = random_floats(64, 32), random_floats(columns, 32), random_floats(64, columns)
    rows, column = result_places(columns)
    memory = np.concatenate([swizzled(a), swizzled(b)])
    for add in (0, 1):
        left, right = cut_to_tf32(a), cut_to_tf32(b)
        expected = (add * d + left @ right.T).astype(np.float32)[rows, column]
        scale = add * np.abs(d) + np.abs(left) @ np.abs(right).T
        inputs = [memory, d[rows, column], np.array([add], np.int32)]
        compare = close(scale[rows, column].ravel() * 2.0**-18)
        for _ in each_mode(sm90):
            expect(f"wgmma_tf32_{columns}", inputs, expected, compare, f"_{add}")


def result_places(columns: int) -> tuple[Array, Array]:
    """Row and column of each register of a warpgroup's threads."""
    thread, e = np.arange(128)[:, None], np.arange(columns // 2)
    row = thread // 32 * 16 + thread % 32 // 4 + e // 2 % 2 * 8
    return row, e // 4 * 8 + thread % 4 * 2 + e % 2


def operand_image(bits: Array, along_k: bool) -> Array:
    """(i, 64 of k) as the descriptors of probe_wgmma find it in shared memory."""
    if along_k:
        return swizzled(bits)
    return np.concatenate(
        [swizzled(np.ascontiguousarray(g.T)) for g in np.split(bits, len(bits) // 64)]
    )


@pytest.mark.parametrize("layout", ["kk", "kt", "tk", "tt"])
@pytest.mark.parametrize("columns", [64, 128, 256])
@pytest.mark.parametrize("kind", ["bf16", "half"])
def test_wgmma(sm90: Any, kind: str, columns: int, layout: str) -> None:
    (a_bits, a), (b_bits, b) = random_16(kind, 64, 64), random_16(kind, columns, 64)
    d = random_floats(64, columns)
    row, column = result_places(columns)
    images = [
        operand_image(x, kept == "k") for x, kept in zip((a_bits, b_bits), layout, strict=True)
    ]
    memory = np.concatenate(images).view(np.uint32)
    for add in (0, 1):
        exact_sum = add * d + a.astype(np.float64) @ b.T
        scale = add * np.abs(d) + np.abs(a).astype(np.float64) @ np.abs(b).T
        compare = close(scale[row, column].ravel() * 2.0**-18)
        inputs = [memory, d[row, column], np.array([add], np.int32)]
        expected = exact_sum.astype(np.float32)[row, column]
        for _ in each_mode(sm90):
            expect(f"wgmma_{kind}_{columns}_{layout}", inputs, expected, compare, f"_{add}")


@pytest.mark.parametrize("layout", ["k", "t"])
@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("kind", ["bf16", "half"])
def test_wgmma_of_registers(sm90: Any, kind: str, columns: int, layout: str) -> None:
    (a_bits, a), (b_bits, b) = random_16(kind, 64, 64), random_16(kind, columns, 64)
    d = random_floats(64, columns)
    rows, column = result_places(columns)
    thread = np.arange(128)[:, None]
    row = thread // 32 * 16 + thread % 32 // 4
    i, half = np.arange(16), np.arange(2)
    a_row = row + i % 2 * 8
    a_column = i // 4 * 16 + i % 4 // 2 * 8 + thread % 4 * 2
    registers = a_bits[a_row[..., None], a_column[..., None] + half].view(np.uint32).ravel()
    memory = operand_image(b_bits, layout == "k").view(np.uint32)
    for add in (0, 1):
        exact_sum = add * d + a.astype(np.float64) @ b.T
        scale = add * np.abs(d) + np.abs(a).astype(np.float64) @ np.abs(b).T
        compare = close(scale[rows, column].ravel() * 2.0**-18)
        inputs = [memory, d[rows, column], np.append(registers, np.uint32(add))]
        expected = exact_sum.astype(np.float32)[rows, column]
        name = f"wgmma_registers_{kind}_{columns}_{layout}"
        for _ in each_mode(sm90):
            expect(name, inputs, expected, compare, f"_{add}")


# ---- bank conflicts ----


def test_bank_conflicts(emulated: Any) -> None:
    memory, row = random_words(512, 4), np.arange(32)
    plain = row % 8 * 8 + row // 8  # matrices side by side in rows of 128 bytes
    swizzled = row % 8 * 8 + (row // 8 ^ row % 8)
    for chunks, conflicts in [(plain, 4 * 7), (swizzled, 0), (row, 0), (row * 2, 4)]:
        emulated.take_counts()
        launch("load_matrices", [memory, chunks.astype(np.int32)], 128)
        assert emulated.take_counts()["conflicts"] == conflicts


# ---- bugs ----

WORDS = random_words(8192)
# Right kernels with their results, and what can be wrong with each.
KERNELS: dict[str, tuple[Array | None, Array, list[str]]] = {
    "missing_barrier": (WORDS[:256], WORDS[:256][::-1], ["wrong"]),
    "partial_barrier": (WORDS[:128], WORDS[:128], ["wrong"]),
    "staged_copies": (WORDS, WORDS, ["wait", "overwrite"]),
    "outside_shared": (WORDS[:256], WORDS[:256], ["wrong"]),
    "ring": (WORDS, WORDS, ["full_parity", "empty_parity", "bytes", "release"]),
    "product": (
        None,
        np.full(128 * 32, 16, np.float32).view(np.uint32),
        ["unwaited", "overwritten"],
    ),
}
BUGS = [(name, bug) for name, (_, _, bugs) in KERNELS.items() for bug in bugs]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("lazy", "seed"), MODES)
def test_right_kernel(emulated: Any, name: str, lazy: bool, seed: int) -> None:
    words, expected, _ = KERNELS[name]
    emulated.set_options(lazy=lazy, seed=seed)
    exact(launch(f"{name}:right", [] if words is None else [words], expected.size), expected)


@pytest.mark.parametrize(("name", "bug"), BUGS)
def test_bug_is_caught(emulated: Any, name: str, bug: str) -> None:
    """At least one mode gives a wrong result or reports an error."""
    words, expected, _ = KERNELS[name]
    caught = []
    for lazy, seed in MODES:
        emulated.set_options(lazy=lazy, seed=seed)
        try:
            got = launch(f"{name}:{bug}", [] if words is None else [words], expected.size)
        except RuntimeError as error:
            caught.append(str(error))
        else:
            caught += ["wrong"] * (not np.array_equal(got, expected))
    assert caught
