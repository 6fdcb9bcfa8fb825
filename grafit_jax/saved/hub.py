"""The Hugging Face hub, through the optional package huggingface_hub."""

import contextlib
import pathlib
from collections.abc import Iterator
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
        with _quiet(package):
            found = package.snapshot_download(repository, revision=revision or None, allow_patterns=[*FILES])
        return pathlib.Path(found)
    except Exception as error:  # of huggingface_hub, of its HTTP client, of the disk
        raise _failure(name, error) from error


def fetch(name: str, *files: str) -> pathlib.Path:
    """Returns the local path of the first of `files` that a model has, downloaded unless it is in the cache.

    The name of its folder is the commit. A file of a given whole commit that is in the cache needs no network.

    Args:
      name: see `download`.
      *files: names of files, the preferred one first.

    Raises:
      UserError: see `download`; or the model has none of the files.
    """
    repository, _, revision = name.partition("@")
    package, missing = _package(name), []
    for file in files:
        try:
            with _quiet(package):
                return pathlib.Path(package.hf_hub_download(repository, file, revision=revision or None))
        except package.errors.EntryNotFoundError as error:  # also one that is not in the cache, without network
            missing.append(error)
        except Exception as error:
            raise _failure(name, error) from error
    if isinstance(missing[0], package.errors.LocalEntryNotFoundError):
        raise _failure(name, missing[0]) from missing[0]
    raise UserError(f"hf:{name}: found no {' or '.join(files)}; use another model of the hub.") from missing[0]


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
        import huggingface_hub.errors
        import huggingface_hub.utils.logging
    except ImportError:
        raise UserError(f"hf:{name}: found no huggingface_hub; use `pip install huggingface_hub`.") from None
    return huggingface_hub


@contextlib.contextmanager
def _quiet(package: Any) -> Iterator[None]:
    """Silences the package, which warns of each of its retries."""
    logging = package.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _failure(name: str, error: Exception) -> UserError:
    """Returns the one-line error for a failed download."""
    errors, (repository, _, revision) = _package(name).errors, name.partition("@")
    if isinstance(error, errors.GatedRepoError):
        text = f"found a gated repository; accept its terms at https://huggingface.co/{repository}, then log in with "
        return UserError(f"hf:{name}: {text}`hf auth login`.")
    if isinstance(error, errors.RepositoryNotFoundError):
        reason = "found no such repository"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"found no revision {revision}"
    else:  # if the file is not in the cache, the cause is the network's error
        reason = _reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)
    return UserError(
        f"hf:{name}: cannot be downloaded ({reason}); check the name and the network, and log in with "
        "`hf auth login` if it is private."
    )


def _reason(error: Exception) -> str:
    """Returns the first line of an error; those of the hub continue with advice and addresses."""
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return text.removeprefix("Got: ")[:200].rstrip(".")
