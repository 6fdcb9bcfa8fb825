"""Readers of untrusted JSON and npz files; nothing is ever unpickled."""

import json
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from grafit_jax.errors import UserError, reading

# The maximum number of characters in a CSV field: a NumPy string array spends the longest one's memory on each.
LONGEST = 4096
_KINDS: Mapping[type, str] = {dict: "object", list: "list"}


def read_json(path: pathlib.Path, kind: type, hint: str) -> Any:
    """Returns the content of a JSON file.

    Args:
      path: the file.
      kind: the type of the content, dict or list.
      hint: the end of an error message, as for `errors.reading`.

    Raises:
      UserError: the file is missing or unreadable, or its content is not a `kind`.
    """
    with reading(path, hint):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, kind):
        raise UserError(f"{path}: found no {_KINDS[kind]}; {hint}.")
    return content


def read_npz(
    path: pathlib.Path, selects: Callable[[str], bool], required: Iterable[str], hint: str
) -> dict[str, np.ndarray]:
    """Returns the selected arrays of an npz file, by name.

    Args:
      path: the file.
      selects: whether to read the array of this name.
      required: the names that must be present.
      hint: the end of an error message, as for `errors.reading`.

    Raises:
      UserError: the file is missing or unreadable, lacks a required array, or holds arrays larger than the host's
        memory (a compressed file may expand a thousandfold).
    """
    with reading(path, hint):
        with zipfile.ZipFile(path) as archive:
            size = sum(m.file_size for m in archive.infolist() if selects(m.filename.removesuffix(".npy")))
        if size > _memory():
            raise UserError(
                f"{path}: found arrays of {size / 2**30:.1f} GiB, more than this host's {_memory() / 2**30:.1f} GiB; "
                f"{hint}."
            )
        with np.load(path, allow_pickle=False) as file:
            for name in required:
                if name not in file:
                    raise UserError(f"{path}: found the arrays {', '.join(file) or 'none'} but no {name}; {hint}.")
            arrays = {name: file[name] for name in file if selects(name)}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # NumPy returns the raw bytes of a member without an array header
                raise ValueError(f"{name} is not an array")
    return arrays


def _memory() -> float:
    """Returns the bytes of the host's memory; infinity on Windows, where it is unknown."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
