"""Grafit in JAX: fine-grained image representations from coarse labels (Touvron et al., ICCV 2021)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grafit_jax.gallery import Gallery, Hit
    from grafit_jax.model import Model, load

__version__ = "0.1.0"
__all__ = ["Gallery", "Hit", "Model", "load"]
# Imported on first use: importing a submodule, such as grafit_jax.losses, stays light.
_PLACES = {"Gallery": "gallery", "Hit": "gallery", "Model": "model", "load": "model"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"grafit_jax.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'grafit_jax' has no attribute {name!r}")
