"""Trunks and heads, in Flax Linen.

Linen keeps parameters and batch statistics as plain pytrees outside a pure `apply`, as pmap, Orbax and the target
network's moving average require.
"""

from grafit_jax.models.heads import Network, Outputs
from grafit_jax.models.trunks import TRUNKS, Classifier, build, build_trunk

__all__ = ["TRUNKS", "Classifier", "Network", "Outputs", "build", "build_trunk"]
