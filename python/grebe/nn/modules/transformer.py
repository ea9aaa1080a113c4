"""Transformer layers and stacks of them. D2L sections 11.7 to 11.9; Vaswani et al. 2017."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ..._cpu import wrap
from ...backend import Array
from ...dtypes import as_dtype, get_default_dtype
from ...tensor import Tensor, check_device
from .. import functional as F
from .. import init
from .checks import whole
from .container import ModuleList
from .dropout import Dropout
from .linear import Linear
from .module import Module
from .multihead import MultiheadAttention, canonical_mask
from .normalization import LayerNorm

__all__ = [
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]

Activation = str | Callable[[Tensor], Tensor]


def _causal_mask(size: int, dtype: np.dtype[Any]) -> Array:
    """-inf (bool: True) above the diagonal, 0 elsewhere."""
    mask = np.triu(np.ones((size, size), bool), 1)
    return mask if dtype.kind == "b" else np.where(mask, -np.inf, 0).astype(dtype)


def _is_causal(mask: Tensor | None, hint: bool | None, x: Tensor, batch_first: bool) -> bool:
    """The hint, or without one whether `mask` is the causal one."""
    if hint is not None or mask is None:
        return bool(hint)
    size = x.shape[1 if batch_first and x.ndim == 3 else 0]
    if tuple(mask.shape) != (size, size):
        return False
    return np.array_equal(mask.array, _causal_mask(size, mask.dtype))


def _clones(layer: Module, count: int) -> ModuleList:
    return ModuleList([copy.deepcopy(layer) for _ in range(count)])


def _function(layer: str, activation: Any) -> Any:
    """The function of that name, or the callable itself."""
    if callable(activation):
        return activation
    if activation not in ("relu", "gelu"):
        raise RuntimeError(f"{layer}: activation should be relu/gelu, not {activation!r}")
    return getattr(F, activation)


class _Layer(Module):
    """Attention, then a network of two linear layers, each with dropout, residual and LayerNorm."""

    attentions: ClassVar[tuple[str, ...]]  # names of the layers of attention, in order
    activation: Any

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        for attention in self.attentions:
            layer = MultiheadAttention(
                d_model, nhead, dropout, bias, batch_first=batch_first, **factory
            )
            self.add_module(attention, layer)
        self.linear1 = Linear(d_model, dim_feedforward, bias, **factory)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, **factory)
        self.norm_first = bool(norm_first)
        count = len(self.attentions) + 1
        for i in range(1, count + 1):
            norm = LayerNorm(d_model, layer_norm_eps, bias=bias, **factory)
            self.add_module(f"norm{i}", norm)
        for i in range(1, count + 1):
            self.add_module(f"dropout{i}", Dropout(dropout))
        self.activation = _function(type(self).__name__, activation)

    def _residual(self, x: Tensor, norm: Any, dropout: Any, block: Any) -> Tensor:
        if self.norm_first:
            return x + dropout(block(norm(x)))
        result: Tensor = norm(x + dropout(block(x)))
        return result

    def _feed_forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return result


class TransformerEncoderLayer(_Layer):
    """Self-attention and a network per position, each with residual and LayerNorm. D2L 11.7.4.

    Args:
        d_model: E, features of input and output.
        nhead: heads of the attention.
        dim_feedforward: features between the two linear layers.
        dropout: after the attention, after the activation, after the second linear layer, and of
            the attention's weights.
        activation: "relu", "gelu" or a function.
        layer_norm_eps: eps of the LayerNorms.
        batch_first: [N, S, E] instead of [S, N, E].
        norm_first: x + block(norm(x)) instead of norm(x + block(x)).
        bias: of all linear layers and LayerNorms.
        device: "cpu".
        dtype: of the parameters.
    """

    attentions = ("self_attn",)
    self_attn: MultiheadAttention
    norm1: LayerNorm
    norm2: LayerNorm
    dropout1: Dropout
    dropout2: Dropout

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """One layer.

        Args:
            src: [S, N, E], [N, S, E] with batch_first, or [S, E].
            src_mask: attn_mask of `MultiheadAttention`.
            src_key_padding_mask: key_padding_mask of `MultiheadAttention`.
            is_causal: src_mask is the causal one.

        Returns:
            Tensor of src's shape.
        """

        def attention(x: Tensor) -> Tensor:
            return self.self_attn(
                x, x, x, src_key_padding_mask, False, src_mask, is_causal=is_causal
            )[0]

        x = self._residual(src, self.norm1, self.dropout1, attention)
        return self._residual(x, self.norm2, self.dropout2, self._feed_forward)


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to an encoder's output and a network per position. D2L 11.7.5.

    Arguments as for `TransformerEncoderLayer`.
    """

    attentions = ("self_attn", "multihead_attn")
    self_attn: MultiheadAttention
    multihead_attn: MultiheadAttention
    norm1: LayerNorm
    norm2: LayerNorm
    norm3: LayerNorm
    dropout1: Dropout
    dropout2: Dropout
    dropout3: Dropout

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """One layer.

        Args:
            tgt: [T, N, E], [N, T, E] with batch_first, or [T, E].
            memory: the encoder's output, [S, N, E], [N, S, E] or [S, E].
            tgt_mask: attn_mask of the self-attention.
            memory_mask: attn_mask of the attention to memory.
            tgt_key_padding_mask: key_padding_mask of the self-attention.
            memory_key_padding_mask: key_padding_mask of the attention to memory.
            tgt_is_causal: tgt_mask is the causal one.
            memory_is_causal: memory_mask is the causal one.

        Returns:
            Tensor of tgt's shape.
        """

        def self_attention(x: Tensor) -> Tensor:
            return self.self_attn(
                x, x, x, tgt_key_padding_mask, False, tgt_mask, is_causal=tgt_is_causal
            )[0]

        def attention(x: Tensor) -> Tensor:
            return self.multihead_attn(
                x, memory, memory, memory_key_padding_mask, False, memory_mask,
                is_causal=memory_is_causal,
            )[0]  # fmt: skip

        x = self._residual(tgt, self.norm1, self.dropout1, self_attention)
        x = self._residual(x, self.norm2, self.dropout2, attention)
        return self._residual(x, self.norm3, self.dropout3, self._feed_forward)


class TransformerEncoder(Module):
    """num_layers copies of a layer, one after the other.

    Args:
        encoder_layer: is copied, so that all layers start with the same weights.
        num_layers: how many.
        norm: applied to the output, or None.
        enable_nested_tensor: accepted for PyTorch's sake: padding at the end of the rows costs
            nothing in the attention anyway, and outputs there are not set to zero.
        mask_check: likewise.
    """

    norm: Module | None

    def __init__(
        self,
        encoder_layer: Module,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__()
        self.num_layers = whole("TransformerEncoder", "num_layers", num_layers, 0)
        self.layers = _clones(encoder_layer, self.num_layers)
        self.norm = norm
        self.enable_nested_tensor, self.mask_check = enable_nested_tensor, mask_check

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """All layers; arguments as for `TransformerEncoderLayer`.

        is_causal None: compare `mask` with the causal one.
        """
        mask = canonical_mask("TransformerEncoder", "mask", mask, src.dtype)
        if mask is not None and len(self.layers):
            batch_first = self.layers[0].self_attn.batch_first
            is_causal = _is_causal(mask, is_causal, src, batch_first)
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask, bool(is_causal))
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(Module):
    """num_layers copies of a layer, one after the other.

    Args:
        decoder_layer: is copied, so that all layers start with the same weights.
        num_layers: how many.
        norm: applied to the output, or None.
    """

    norm: Module | None

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__()
        self.num_layers = whole("TransformerDecoder", "num_layers", num_layers, 0)
        self.layers = _clones(decoder_layer, self.num_layers)
        self.norm = norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """All layers; arguments as for `TransformerDecoderLayer`.

        tgt_is_causal None: compare `tgt_mask` with the causal one.
        """
        tgt_mask = canonical_mask("TransformerDecoder", "tgt_mask", tgt_mask, tgt.dtype)
        if tgt_mask is not None and len(self.layers):
            batch_first = self.layers[0].self_attn.batch_first
            tgt_is_causal = _is_causal(tgt_mask, tgt_is_causal, tgt, batch_first)
        for layer in self.layers:
            tgt = layer(
                tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask,
                memory_key_padding_mask, bool(tgt_is_causal), memory_is_causal,
            )  # fmt: skip
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(Module):
    """Encoder and decoder. Vaswani et al. 2017; D2L section 11.7.

    Args:
        d_model: E, features of both inputs and of the output.
        nhead: heads of each attention.
        num_encoder_layers: how many.
        num_decoder_layers: how many.
        dim_feedforward: see `TransformerEncoderLayer`, as for all that follow.
        dropout: see there.
        activation: see there.
        custom_encoder: instead of a `TransformerEncoder`.
        custom_decoder: instead of a `TransformerDecoder`.
        layer_norm_eps: eps of the LayerNorms, also those after the last layers.
        batch_first: [N, S, E] instead of [S, N, E].
        norm_first: x + block(norm(x)) instead of norm(x + block(x)).
        bias: of all linear layers and LayerNorms.
        device: "cpu".
        dtype: of the parameters.

    Weights of two dimensions start by Xavier's rule.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        custom_encoder: Any = None,
        custom_decoder: Any = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        options = (
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first,
            norm_first, bias, device, dtype,
        )  # fmt: skip

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype)

        self.encoder = (
            TransformerEncoder(TransformerEncoderLayer(*options), num_encoder_layers, norm())
            if custom_encoder is None
            else custom_encoder
        )
        self.decoder = (
            TransformerDecoder(TransformerDecoderLayer(*options), num_decoder_layers, norm())
            if custom_decoder is None
            else custom_decoder
        )
        self._reset_parameters()
        self.d_model, self.nhead, self.batch_first = d_model, nhead, bool(batch_first)

    def _reset_parameters(self) -> None:
        for parameter in self.parameters():
            if parameter.ndim > 1:
                init.xavier_uniform_(parameter)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Encoder, then decoder.

        Args:
            src: [S, N, E], [N, S, E] with batch_first, or [S, E].
            tgt: [T, N, E], [N, T, E] or [T, E].
            src_mask: [S, S] or [N * nhead, S, S]; see `MultiheadAttention`, as for all masks.
            tgt_mask: [T, T] or [N * nhead, T, T].
            memory_mask: [T, S] or [N * nhead, T, S].
            src_key_padding_mask: [N, S] or [S].
            tgt_key_padding_mask: [N, T] or [T].
            memory_key_padding_mask: [N, S] or [S].
            src_is_causal: src_mask is the causal one; None: compare.
            tgt_is_causal: tgt_mask is the causal one; None: compare.
            memory_is_causal: memory_mask is the causal one.

        Returns:
            Tensor of tgt's shape.

        Raises:
            RuntimeError: shapes that do not fit.
        """
        batch = 0 if self.batch_first else 1
        if src.ndim == 3 and tgt.ndim == 3 and src.shape[batch] != tgt.shape[batch]:
            raise RuntimeError(
                "Transformer: the batch number of src and tgt must be equal, got "
                f"{list(src.shape)} and {list(tgt.shape)}"
            )
        if src.shape[-1] != self.d_model or tgt.shape[-1] != self.d_model:
            raise RuntimeError(
                "Transformer: the feature number of src and tgt must be equal to d_model="
                f"{self.d_model}, got {list(src.shape)} and {list(tgt.shape)}"
            )
        memory = self.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        return self.decoder(
            tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
            tgt_is_causal, memory_is_causal,
        )  # fmt: skip

    @staticmethod
    def generate_square_subsequent_mask(sz: int, device: Any = None, dtype: Any = None) -> Tensor:
        """The causal mask [sz, sz]: -inf above the diagonal, else 0."""
        name = "generate_square_subsequent_mask"
        check_device(name, device)
        wanted = get_default_dtype() if dtype is None else as_dtype(name, dtype)
        return wrap(_causal_mask(whole(name, "sz", sz, 0), wanted))
