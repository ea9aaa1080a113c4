"""Embedding: a table of vectors looked up by index. D2L section 15.4."""

from __future__ import annotations

from typing import Any

from ...autograd import no_grad
from ...ops.creation import empty
from ...tensor import Tensor
from .. import functional as F
from .. import init
from ..parameter import Parameter
from .checks import factory, whole
from .module import Module

__all__ = ["Embedding"]


class Embedding(Module):
    """y[...] = weight[x[...]] for integer x; weight [num_embeddings, embedding_dim] from N(0, 1).

    padding_idx: this row starts at zero and gets no gradient. max_norm: rows looked up are first
    rescaled in place to at most this norm. scale_grad_by_freq: divide a row's gradient by how often
    it was looked up.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = whole("Embedding", "num_embeddings", num_embeddings, 0)
        self.embedding_dim = whole("Embedding", "embedding_dim", embedding_dim, 0)
        if sparse:
            raise NotImplementedError("Embedding: sparse gradients are not supported")
        if padding_idx is not None:
            whole("Embedding", "padding_idx", padding_idx, -num_embeddings)
            if padding_idx >= num_embeddings:
                raise ValueError(
                    f"Embedding: padding_idx must be below num_embeddings={num_embeddings}, got "
                    f"{padding_idx}"
                )
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse
        sizes = (num_embeddings, embedding_dim)
        if _weight is None:
            wanted = factory("Embedding", device, dtype)
            self.weight = Parameter(empty(sizes, dtype=wanted), requires_grad=not _freeze)
            self.reset_parameters()
        elif tuple(_weight.shape) == sizes:
            self.weight = Parameter(_weight, requires_grad=not _freeze)
        else:
            raise ValueError(
                f"Embedding: weight has shape {list(_weight.shape)}, expected {list(sizes)}"
            )

    def reset_parameters(self) -> None:
        """Draws the table anew from N(0, 1); the padding row is zero."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx].fill_(0)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Embedding:
        """An embedding on the table `embeddings` [rows, columns], not trained if `freeze`."""
        if not isinstance(embeddings, Tensor) or embeddings.ndim != 2:
            got = list(embeddings.shape) if isinstance(embeddings, Tensor) else embeddings
            raise ValueError(f"from_pretrained: embeddings must be a 2-d Tensor, got {got!r}")
        rows, columns = embeddings.shape
        return cls(
            rows, columns, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse,
            _weight=embeddings, _freeze=freeze,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(
            input, self.weight, self.padding_idx, self.max_norm, self.norm_type,
            self.scale_grad_by_freq, self.sparse,
        )  # fmt: skip

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        if self.max_norm is not None:
            text += f", max_norm={self.max_norm}"
        if self.norm_type != 2:
            text += f", norm_type={self.norm_type}"
        if self.scale_grad_by_freq:
            text += f", scale_grad_by_freq={self.scale_grad_by_freq}"
        return text
