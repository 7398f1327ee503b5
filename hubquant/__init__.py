"""Quantized models, made in one pass, measured, published."""

__version__ = "0.1.0"
