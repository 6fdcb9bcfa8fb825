"""The Hugging Face hub, through the optional package huggingface_hub."""

import pathlib
from typing import Any

from grafit_jax.errors import UserError

# The files of a saved model.
WEIGHTS, CONFIG, CARD = FILES = ("model.safetensors", "config.json", "README.md")


def download(name: str) -> pathlib.Path:
    """Returns the local folder of a model, downloaded unless it is in huggingface_hub's cache.

    Args:
      name: "owner/name", or "owner/name@revision" with a branch, tag or commit.

    Raises:
      UserError: huggingface_hub is not installed, there is no such model, it is private, or the hub is unreachable and
        the model not in the cache.
    """
    repository, _, revision = name.partition("@")
    package = _package(name)
    try:
        return pathlib.Path(package.snapshot_download(repository, revision=revision or None, allow_patterns=[*FILES]))
    except Exception as error:  # of huggingface_hub, of its HTTP client, of the disk
        raise UserError(
            f"hf:{name}: cannot be downloaded ({_reason(error)}); check the name and the network, and log in with "
            "`hf auth login` if it is private."
        ) from error


def upload(folder: pathlib.Path, name: str, *, private: bool) -> str:
    """Uploads the folder of a saved model as "owner/name", created if needed; returns the address of the commit.

    Raises:
      UserError: huggingface_hub is not installed, the hub is unreachable, or it refuses.
    """
    api = _package(name).HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[*FILES]))
    except Exception as error:
        raise UserError(
            f"hf:{name}: cannot be uploaded ({_reason(error)}); check the name and the network, and log in with "
            "`hf auth login`."
        ) from error


def _package(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"hf:{name}: found no huggingface_hub; use `pip install huggingface_hub`.") from None
    return huggingface_hub


def _reason(error: Exception) -> str:
    """Returns the first line of an error; those of the hub continue with advice and addresses."""
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return text.removeprefix("Got: ")[:200].rstrip(".")
