"""The Hugging Face hub, through the optional package huggingface_hub."""

import pathlib

from grafit_jax.errors import UserError


def download(name: str) -> pathlib.Path:
    """Returns the local folder of the saved model "owner/name[@revision]", downloaded unless it is cached."""
    raise UserError(f"hf:{name}: not implemented")
