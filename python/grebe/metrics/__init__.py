"""How good predictions are, as numbers: classes, scores, regressions, texts.

Functions judge one set of predictions; `Classification`, `Curves`, `Regression` and `Mean` collect
batches first. Inputs are tensors of any device or arrays, results Python numbers and NumPy arrays.
"""

from . import classification, curves, regression, streaming, text
from .classification import *  # noqa: F403
from .curves import *  # noqa: F403
from .regression import *  # noqa: F403
from .streaming import *  # noqa: F403
from .text import *  # noqa: F403

__all__ = [
    *classification.__all__, *curves.__all__, *regression.__all__, *streaming.__all__,
    *text.__all__,
]  # fmt: skip
