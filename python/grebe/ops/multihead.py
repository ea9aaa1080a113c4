"""Attention of several heads on joint projections. Kernels: as for `attention`. D2L 11.5.

Query, key and value stay where the matrix product of their projection has put them, side by side
in one array; their gradients are written the same way, so that the projection's backward is one
product too. Heads are views: nothing is permuted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._cpu import Node, grad_enabled, record, wrap
from ..amp import low_precision
from ..backend import Array, contiguous, empty, kernels
from ..tensor import Tensor
from .attention import (
    Options,
    composite,
    gradient_of_mask,
    gradients_of,
    lacks_kernel,
    mask_array,
    score_dtype,
    wide,
)  # fmt: skip
from .random import default_generator
from .softmax import is_half

__all__: list[str] = []


@dataclass(frozen=True)
class Layout:
    """How the heads lie in the projections [B, L, parts * E], or [L, B, parts * E].

    parts: of each projection, 3 in all: (3,) is query, key and value; (1, 2) query, and the others.
    """

    parts: tuple[int, ...]
    heads: int
    batch_first: bool

    def arrays(self, arrays: list[Array]) -> list[Array]:
        """Query, key and value [B, H, L, D] as views."""
        found: list[Array] = []
        for array, parts in zip(arrays, self.parts, strict=True):
            x = array if self.batch_first else array.swapaxes(0, 1)
            b, n, width = x.shape
            split = x.reshape(b, n, parts, self.heads, width // (parts * self.heads))
            found.extend(split.transpose(2, 0, 3, 1, 4))
        return found

    def tensors(self, tensors: list[Tensor]) -> list[Tensor]:
        """Query, key and value [B, H, L, D] by differentiable ops."""
        found: list[Tensor] = []
        for tensor, parts in zip(tensors, self.parts, strict=True):
            x = tensor if self.batch_first else tensor.transpose(0, 1)
            b, n, width = x.shape
            split = x.reshape(b, n, parts, self.heads, width // (parts * self.heads))
            found.extend(split.permute(2, 0, 3, 1, 4).unbind(0))
        return found

    def joined(self, y: Tensor) -> Tensor:
        """[B, H, L, D] as [B, L, E] or [L, B, E]."""
        y = y.permute(0, 2, 1, 3) if self.batch_first else y.permute(2, 0, 1, 3)
        return y.flatten(2)


class MultiheadAttention(Node):
    """As `attention.Attention`, with the gradients of each projection in one array."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, ...]:
        sources, mask, y, lse, options, layout = _unpacked(self.saved)
        if grad_enabled():

            def output(*inputs: Any) -> Tensor:
                q, k, v = layout.tensors(list(inputs[:-1]))
                return layout.joined(composite(q, k, v, inputs[-1], options)[0])

            return gradients_of(output, (*sources, mask), self.edges, grad)
        arrays = [contiguous(wide(s.array)) for s in sources]
        gradients = [empty(a.shape, a.dtype, a) for a in arrays]
        heads = Layout((1,), layout.heads, layout.batch_first)
        (dy,), (out,) = heads.arrays([contiguous(wide(grad.array))]), heads.arrays([wide(y.array)])
        dmask = gradient_of_mask(mask if self.edges[-1] is not None else None)
        kernels(dy).attention_backward(
            dy, *layout.arrays(arrays), mask_array(mask), options.lengths, options.slopes, out, lse,
            *layout.arrays(gradients), dmask, *options.arguments(),
        )  # fmt: skip
        narrow = [wrap(g).to(y.dtype) for g in gradients]
        return (*narrow, None if dmask is None else wrap(dmask))


def _unpacked(saved: tuple[Any, ...]) -> tuple[Any, ...]:
    *sources, mask, y, lse, options, layout = saved
    return sources, mask, y, lse, options, layout


@low_precision
def multihead_attention(
    sources: list[Tensor],
    layout: Layout,
    mask: Tensor | None,
    lengths: Array | None,
    is_causal: bool,
    dropout_p: float,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """`scaled_dot_product_attention` on projections; the caller has checked the arguments.

    Args:
        sources: as `Layout` says.
        layout: where the heads are.
        mask: of four dimensions that are 1 or as in [B, H, L, S], the last as there.
        lengths: int64 [B], of the keys.
        is_causal: query i sees the keys up to i.
        dropout_p: of the weights.
        need_weights: return them too.

    Returns:
        [B, L, E] or [L, B, E], and the weights [B, H, L, S] before dropout, or None.
    """
    dtype = sources[0].array.dtype
    if mask is not None and is_half(mask.array.dtype):
        mask = mask.to(np.float32)
    if lacks_kernel(sources[0].array):
        sources = [s.to(np.float32) for s in sources]
        y, weights = multihead_attention(
            sources, layout, mask, lengths, is_causal, dropout_p, need_weights
        )
        return y.to(dtype), None if weights is None else weights.to(dtype)
    arrays = [contiguous(s.array) for s in sources]
    q, k, v = layout.arrays(arrays)
    b, h, n, d = q.shape
    s = k.shape[2]
    stream = default_generator.take(b * h * n * (-(-s // 64) * 64)) if dropout_p else (0, 0)
    end = 1 if is_causal else s
    options = Options(1 / math.sqrt(d), 0.0, None, lengths, -n, end, 0, float(dropout_p), *stream)
    if need_weights:
        query, key, value = layout.tensors(sources)
        output, weights = composite(query, key, value, mask, options)
        return layout.joined(output), weights
    y_array = empty((b, n, h * d) if layout.batch_first else (n, b, h * d), dtype, q)
    lse = empty((b, h, n), score_dtype(dtype), q)
    (out,) = Layout((1,), h, layout.batch_first).arrays([y_array])
    kernels(q).attention(q, k, v, mask_array(mask), lengths, None, out, lse, *options.arguments())
    saved = (*sources, mask, y_array, lse, options, layout)
    return record(MultiheadAttention, y_array, (*sources, mask), saved), None
