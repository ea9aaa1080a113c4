"""grebe: deep learning on kernels that can be read."""

__version__ = "0.1.0"
