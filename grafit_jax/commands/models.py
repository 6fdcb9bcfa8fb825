"""The model of a gallery, for commands that embed queries."""

import os

import grafit_jax
from grafit_jax import open_keys
from grafit_jax.errors import UserError


def of_gallery(gallery: grafit_jax.Gallery, given: str | None, name: str) -> grafit_jax.Model:
    """Loads the model `given` (a workdir, saved model or hf:owner/name) or, without one, the one that made the gallery.

    Raises:
      UserError: there is none where the gallery, called `name` in messages, says.
    """
    made_by = gallery.features.made_by
    where = given or str(made_by.get("path", ""))
    if not where.startswith(open_keys.HUB) and not os.path.isdir(where):
        raise UserError(
            f"{name}: found no {where or 'record of its model'}; expected the model that made it; use --workdir=DIR or "
            "--model=FOLDER."
        )
    step = str(made_by.get("step"))  # the training may have saved later checkpoints
    exists = os.path.isdir(os.path.join(where, "checkpoints", step))
    return grafit_jax.load(where, checkpoint=int(step) if exists else "newest")
