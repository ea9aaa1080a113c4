"""Layers, containers and losses, one file per family."""

from . import (
    activation,
    batchnorm,
    container,
    conv,
    dropout,
    flatten,
    lazy,
    linear,
    loss,
    module,
    multihead,
    normalization,
    pooling,
    rnn,
    sparse,
    transformer,
)
from .activation import *  # noqa: F403
from .batchnorm import *  # noqa: F403
from .container import *  # noqa: F403
from .conv import *  # noqa: F403
from .dropout import *  # noqa: F403
from .flatten import *  # noqa: F403
from .lazy import *  # noqa: F403
from .linear import *  # noqa: F403
from .loss import *  # noqa: F403
from .module import *  # noqa: F403
from .multihead import *  # noqa: F403
from .normalization import *  # noqa: F403
from .pooling import *  # noqa: F403
from .rnn import *  # noqa: F403
from .sparse import *  # noqa: F403
from .transformer import *  # noqa: F403

# Not written `__all__ = ...`: mypy does not follow that form, and would take nothing as exported.
vars()["__all__"] = [
    name
    for family in (
        activation,
        batchnorm,
        container,
        conv,
        dropout,
        flatten,
        lazy,
        linear,
        loss,
        module,
        multihead,
        normalization,
        pooling,
        rnn,
        sparse,
        transformer,
    )
    for name in family.__all__
]
