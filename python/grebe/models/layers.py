"""What the Transformers in this folder share: their layers and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import Tensor, arange, nn, utils


def encoder_layer(
    size: int,
    heads: int,
    hidden: int,
    dropout: float,
    activation: str | Callable[[Tensor], Tensor],
    eps: float = 1e-5,
    norm_first: bool = False,
) -> Any:
    """`nn.TransformerEncoderLayer` for [B, T, size] without dropout after the activation."""
    layer = nn.TransformerEncoderLayer(
        size, heads, hidden, dropout, activation, eps, batch_first=True, norm_first=norm_first
    )
    layer.dropout.p = 0.0
    return layer


class Checkpointed(nn.Module):
    """A network whose layers can be computed again in backward, to save their memory.

    Attributes:
        checkpointing: do so while training.
    """

    checkpointing = False

    def run(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """`layer` of its arguments."""
        if not (self.checkpointing and self.training):
            return layer(*args, **kwargs)
        return utils.checkpoint.checkpoint(layer, *args, use_reentrant=False, **kwargs)


def feed_forward(layer: Any, x: Tensor) -> Tensor:
    """The two linear layers of a Transformer layer in evaluation mode."""
    result: Tensor = layer.linear2(layer.activation(layer.linear1(x)))
    return result


def padding_mask(lengths: Tensor | None, steps: int) -> Tensor | None:
    """True where the rows [B, steps] hold padding; lengths are whole numbers [B], None: nowhere."""
    if lengths is None:
        return None
    return arange(steps, device=lengths.device).unsqueeze(0) >= lengths.unsqueeze(1)
