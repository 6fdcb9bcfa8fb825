"""Models on disk: what a run writes about its network, saved models, model cards, the Hugging Face hub."""

from grafit_jax.saved.folder import Stored, read, write

__all__ = ["Stored", "read", "write"]
