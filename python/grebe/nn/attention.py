"""What may be done to the scores of `functional.scaled_dot_product_attention`."""

from ..ops.attention import ALiBi, SoftCap

__all__ = ["ALiBi", "SoftCap"]
