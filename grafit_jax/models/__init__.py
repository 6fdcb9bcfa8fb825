"""Trunks and heads, in Flax Linen.

Linen, because its parameters and batch statistics are plain pytrees handed to a pure `apply`: what pmap, Orbax and the
target network's moving average all want.
"""

from grafit_jax.models.heads import Network, Outputs
from grafit_jax.models.trunks import TRUNKS, Classifier, build, build_trunk

__all__ = ["TRUNKS", "Classifier", "Network", "Outputs", "build", "build_trunk"]
