"""Files that may be damaged, or somebody else's: JSON and npz, of which nothing is ever unpickled."""

import json
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from grafit_jax.errors import UserError, reading

# Characters of a name in a CSV. As an array, all names take as much memory as the longest one.
LONGEST = 4096
_KINDS: Mapping[type, str] = {dict: "object", list: "list"}


def read_json(path: pathlib.Path, kind: type, want: str) -> Any:
    """The content of a JSON file.

    Args:
      path: the file.
      kind: dict or list.
      want: as for `errors.reading`.

    Raises:
      UserError: a file that is missing, cannot be read, or holds something else than a `kind`.
    """
    with reading(path, want):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, kind):
        raise UserError(f"{path} holds no {_KINDS[kind]}: {want}.")
    return content


def read_npz(
    path: pathlib.Path, wanted: Callable[[str], bool], needed: Iterable[str], want: str
) -> dict[str, np.ndarray]:
    """The arrays of an npz file whose names are `wanted`.

    Args:
      path: the file.
      wanted: whether an array is read, by its name.
      needed: names that have to be there.
      want: as for `errors.reading`.

    Raises:
      UserError: a file that is missing, cannot be read or lacks a needed array, or whose arrays would not fit into the
        host's memory: a compressed file may be a thousandth of what comes out of it.
    """
    with reading(path, want):
        with zipfile.ZipFile(path) as archive:
            size = sum(m.file_size for m in archive.infolist() if wanted(m.filename.removesuffix(".npy")))
        if size > _memory():
            raise UserError(
                f"{path} holds arrays of {size / 2**30:.1f} GiB, and this host has {_memory() / 2**30:.1f} GiB: {want}."
            )
        with np.load(path, allow_pickle=False) as file:
            for name in needed:
                if name not in file:
                    raise UserError(f"{path} holds the arrays {', '.join(file) or 'none'} but no {name}: {want}.")
            arrays = {name: file[name] for name in file if wanted(name)}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # NumPy hands over the bytes of what does not begin as an array
                raise ValueError(f"{name} is no array")
    return arrays


def _memory() -> float:
    """Bytes of the host's memory; infinite on Windows, which does not say so."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
