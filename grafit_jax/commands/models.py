"""Models and galleries of commands."""

import os

import grafit_jax
from grafit_jax import open_keys
from grafit_jax.errors import UserError


def given(workdir: str | None, model: str | None) -> str | None:
    """Returns the value of --workdir or --model; raises UserError for both."""
    if workdir is not None and model is not None:
        raise UserError("found both --workdir and --model; expected one.")
    return workdir or model


def files(gallery: grafit_jax.Gallery, name: str) -> list[str]:
    """Returns the image files of a gallery, called `name` in messages; raises UserError if an image has none."""
    found = gallery.features.filename
    if found is None or not all(map(str, found)):
        raise UserError(
            f"{name}: found images without a file; expected a gallery of image files; use experiments/embed.py "
            "--images=FOLDER."
        )
    return found.astype(str).tolist()


def of_gallery(gallery: grafit_jax.Gallery, where: str | None, name: str) -> grafit_jax.Model:
    """Loads the model `where` (a workdir, saved model or hf:owner/name) or, without one, the one that made the gallery.

    Raises:
      UserError: there is none where the gallery, called `name` in messages, says.
    """
    made_by = gallery.features.made_by
    where = where or str(made_by.get("path", ""))
    if not where.startswith(open_keys.HUB) and not os.path.isdir(where):
        raise UserError(
            f"{name}: found no {where or 'record of its model'}; expected the model that made it; use --workdir=DIR or "
            "--model=FOLDER."
        )
    step = str(made_by.get("step"))  # the training may have saved later checkpoints
    exists = os.path.isdir(os.path.join(where, "checkpoints", step))
    return grafit_jax.load(where, checkpoint=int(step) if exists else "newest")
