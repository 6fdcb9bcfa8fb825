"""How many of the eight simulated devices the library sees."""

import jax

from grafit_jax import parallel


def use_devices(patch, count):
    """From now on the library sees the first `count` devices, until the MonkeyPatch is undone."""
    patch.setattr(parallel, "devices", lambda: jax.local_devices()[:count])
