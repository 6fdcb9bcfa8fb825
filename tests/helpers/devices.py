"""Number of simulated devices visible to the library."""

import jax

from grafit_jax import parallel


def use_devices(patch, count):
    """Restricts the library to the first `count` devices until the MonkeyPatch is undone."""
    patch.setattr(parallel, "devices", lambda: jax.local_devices()[:count])
