"""What may be done to scores, queries and keys of `scaled_dot_product_attention`."""

from ..ops.attention import ALiBi, SoftCap
from ..ops.rotary import rotary, rotary_tables

__all__ = ["ALiBi", "SoftCap", "rotary", "rotary_tables"]
