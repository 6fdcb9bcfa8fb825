"""Models on disk: what a run writes about its network, saved models, model cards, the Hugging Face hub."""

from grafit_jax.saved.folder import Stored, config_of, read, write

__all__ = ["Stored", "config_of", "read", "write"]
