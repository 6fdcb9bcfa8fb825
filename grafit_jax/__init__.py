"""Grafit in JAX: fine-grained image representations from coarse labels (Touvron et al., ICCV 2021)."""

__version__ = "0.1.0"
