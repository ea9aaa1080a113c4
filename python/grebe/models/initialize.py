"""Shapes and first weights of networks with lazy layers. D2L sections 6.4 and 7.6."""

from __future__ import annotations

from .. import Tensor, nn
from ..autograd import no_grad


def init_cnn(module: nn.Module) -> None:
    """Draws the weight of a linear or convolutional layer by Xavier's rule."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_uniform_(module.weight)


def apply_init(net: nn.Module, *inputs: Tensor) -> nn.Module:
    """Runs `net` once, which gives lazy layers their shapes, then `init_cnn` on all its layers.

    The run is one in evaluation mode: it leaves running statistics as they are.
    """
    training = net.training
    with no_grad():
        net.eval()(*inputs)
    return net.train(training).apply(init_cnn)
