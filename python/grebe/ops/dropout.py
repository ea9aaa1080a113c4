"""Dropout. The mask is a function of (seed, offset, position): backward makes it again.

Kernel: `dropout` in csrc/cpu/random.cpp. D2L section 5.6.
"""

from __future__ import annotations

__all__ = ["dropout"]
