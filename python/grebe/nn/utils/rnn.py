"""Sequences of different lengths: padded, packed, and from one form to the other. D2L section 10.5.

A `PackedSequence` holds the tokens of a batch step after step, longest sequence first: recurrent
layers compute nothing for padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...backend import on_host
from ...ops.creation import full
from ...ops.creation import tensor as make_tensor
from ...ops.shape import cat
from ...tensor import Tensor, expect_tensor

__all__ = [
    "PackedSequence", "invert_permutation", "pack_padded_sequence", "pack_sequence",
    "pad_packed_sequence", "pad_sequence", "unpack_sequence", "unpad_sequence",
]  # fmt: skip


class PackedSequence(NamedTuple):
    """Tokens step after step.

    data: [tokens, *]; batch_sizes: how many sequences each step has, int64, never growing.
    sorted_indices: the order of the sequences by length, None if they came sorted;
    unsorted_indices: its inverse.
    """

    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """Moves or casts the data, see `Tensor.to`; the indices go along."""
        data = self.data.to(*args, **kwargs)
        orders = [t if t is None else t.to(data.device) for t in self[2:]]
        return PackedSequence(data, self.batch_sizes, *orders)


def invert_permutation(permutation: Tensor | None) -> Tensor | None:
    """The permutation that undoes `permutation` [n]; None stays None."""
    if permutation is None:
        return None
    order = expect_tensor("invert_permutation", "permutation", permutation)
    indices = on_host(order)
    inverse = np.empty_like(indices)
    inverse[indices] = np.arange(indices.size)
    return make_tensor(inverse, device=permutation.device)


def _lengths(name: str, lengths: Any, batch: int, steps: int) -> np.ndarray[Any, Any]:
    array = np.asarray(lengths.cpu().numpy() if isinstance(lengths, Tensor) else lengths)
    if array.shape != (batch,) or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: expected one whole length for each of {batch} sequences, got shape "
            f"{list(array.shape)} of {array.dtype}"
        )
    if array.size == 0 or array.min() < 1 or array.max() > steps:
        raise ValueError(
            f"{name}: lengths must be from 1 to {steps}, the number of steps; got {array.tolist()}"
        )
    return array.astype(np.int64)


def pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Packs padded sequences.

    Args:
        input: [T, B, *], or [B, T, *] with `batch_first`.
        lengths: B whole numbers from 1 to T (list, array or tensor).
        batch_first: see input.
        enforce_sorted: the sequences are sorted from long to short; ValueError if not. Else they
            are sorted here, and layers undo it in their results.

    Raises:
        ValueError: lengths do not fit.
    """
    name = "pack_padded_sequence"
    if expect_tensor(name, "input", input).ndim < 2:
        raise ValueError(f"{name}: expected input [T, B, *], got {list(input.shape)}")
    x = input.transpose(0, 1) if batch_first else input
    sizes = _lengths(name, lengths, x.shape[1], x.shape[0])
    order = None
    if enforce_sorted:
        if (np.diff(sizes) > 0).any():
            raise ValueError(
                f"{name}: lengths must be sorted in decreasing order with enforce_sorted=True, "
                f"got {sizes.tolist()}"
            )
    else:
        by_length = np.argsort(-sizes, kind="stable")
        order, sizes = make_tensor(by_length, device=x.device), sizes[by_length]
        x = x.index_select(1, order)
    batch_sizes = (sizes > np.arange(sizes[0])[:, None]).sum(1)
    tokens = np.flatnonzero(np.arange(x.shape[0])[:, None] < sizes)
    data = x.flatten(0, 1).index_select(0, make_tensor(tokens, device=x.device))
    return PackedSequence(data, make_tensor(batch_sizes), order, invert_permutation(order))


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_padded_sequence`: padded sequences, and their lengths.

    Args:
        sequence: what to unpack.
        batch_first: the result is [B, T, *] instead of [T, B, *].
        padding_value: what stands behind the end of a sequence.
        total_length: T; None for the longest length.
    """
    name = "pad_packed_sequence"
    if not isinstance(sequence, PackedSequence):
        raise TypeError(f"{name}: expected a PackedSequence, got {type(sequence).__name__}")
    data, sizes = sequence.data, sequence.batch_sizes.numpy()
    steps = len(sizes) if total_length is None else total_length
    if steps < len(sizes):
        raise ValueError(
            f"{name}: total_length must be at least {len(sizes)}, the longest sequence, got {steps}"
        )
    batch = int(sizes[0])
    lengths = (sizes[:, None] > np.arange(batch)).sum(0)
    tokens = np.flatnonzero(np.arange(steps)[:, None] < lengths)
    device = data.device
    flat = full((steps * batch, *data.shape[1:]), padding_value, dtype=data.dtype, device=device)
    padded = flat.index_put((make_tensor(tokens, device=device),), data)
    padded = padded.unflatten(0, (steps, batch))
    if sequence.unsorted_indices is not None:
        padded = padded.index_select(1, sequence.unsorted_indices)
        lengths = lengths[sequence.unsorted_indices.cpu().numpy()]
    return padded.transpose(0, 1) if batch_first else padded, make_tensor(lengths)


def _tensors(name: str, sequences: Any) -> list[Tensor]:
    """The sequences as a list; ValueError unless they agree in all but their lengths."""
    tensors = list(sequences)
    for index, tensor in enumerate(tensors):
        expect_tensor(name, f"sequences[{index}]", tensor)
    if not tensors or any(t.ndim == 0 or t.shape[1:] != tensors[0].shape[1:] for t in tensors):
        shapes = ", ".join(str(list(t.shape)) for t in tensors)
        raise ValueError(f"{name}: expected tensors [L, *] that agree in *, got {shapes or 'none'}")
    return tensors


def pad_sequence(
    sequences: Sequence[Tensor],
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: str = "right",
) -> Tensor:
    """Sequences [L_i, *] in one tensor [T, B, *] ([B, T, *] with `batch_first`), T the longest."""
    name = "pad_sequence"
    tensors = _tensors(name, sequences)
    if padding_side not in ("left", "right"):
        raise ValueError(f"{name}: padding_side must be 'left' or 'right', got {padding_side!r}")
    steps = max(len(t) for t in tensors)
    rows = []
    for t in tensors:
        missing = (steps - len(t), *t.shape[1:])
        padding = full(missing, padding_value, dtype=t.dtype, device=t.device)
        rows.append(cat([padding, t] if padding_side == "left" else [t, padding]))
    padded = cat(rows).unflatten(0, (len(rows), steps))
    return padded if batch_first else padded.transpose(0, 1)


def unpad_sequence(
    padded_sequences: Tensor, lengths: Tensor, batch_first: bool = False
) -> list[Tensor]:
    """The sequences [L_i, *] out of a padded tensor, see `pad_sequence`."""
    name = "unpad_sequence"
    expect_tensor(name, "padded_sequences", padded_sequences)
    x = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    sizes = _lengths(name, lengths, x.shape[0], x.shape[1])
    return [x[i, :n] for i, n in enumerate(sizes.tolist())]


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Packs sequences [L_i, *], see `pack_padded_sequence`."""
    lengths = [len(t) for t in _tensors("pack_sequence", sequences)]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The sequences [L_i, *] out of a packed one."""
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)
