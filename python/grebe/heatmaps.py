"""Attention weights as a picture: rows look at columns. D2L section 11.1.3."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .serialization import atomic_write

__all__ = ["draw_heatmaps"]

_LABELLED = 40  # more tokens than this would be too small to read


def draw_heatmaps(
    path: str | os.PathLike[str],
    maps: Sequence[tuple[str, NDArray[Any]]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    """Write a PNG with one picture per map, four side by side.

    Args:
        path: of the file to make or replace.
        maps: titles and weights [len(rows), len(columns)] from 0 to 1.
        rows: what the queries stand for.
        columns: what the keys stand for.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no map, or one of another shape.
        OSError: the file cannot be written.
    """
    for title, weights in maps:
        if weights.shape != (len(rows), len(columns)):
            raise ValueError(
                f"draw_heatmaps: expected weights [{len(rows)}, {len(columns)}], got "
                f"{list(weights.shape)} for {title!r}"
            )
    if not maps:
        raise ValueError("draw_heatmaps: expected at least one map")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(4, len(maps))
    down = math.ceil(len(maps) / across)
    figure = Figure(figsize=(3.2 * across, 3.2 * down), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (title, weights) in enumerate(maps):
        axes: Any = figure.add_subplot(down, across, i + 1, title=title)
        axes.imshow(np.asarray(weights, np.float32), cmap="viridis", vmin=0, vmax=1, aspect="auto")
        _label(axes.xaxis, columns if i // across == down - 1 else [], 90)
        _label(axes.yaxis, rows if i % across == 0 else [], 0)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    atomic_write(path, png.getvalue())


def _label(axis: Any, names: Sequence[str], rotation: int) -> None:
    """Names as they are: a token such as $ is no formula."""
    shown = names if len(names) <= _LABELLED else []
    axis.set_ticks(range(len(shown)))
    axis.set_ticklabels([name.replace("$", r"\$") for name in shown], fontsize=7, rotation=rotation)
