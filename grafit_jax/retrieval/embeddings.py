"""Embedding files: .npz, .parquet, or .npy with the labels in a .csv of the same name."""

import csv
import dataclasses
import functools
import itertools
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from grafit_jax.data.files import LONGEST, read_npz
from grafit_jax.errors import UserError, reading, warn, writing
from grafit_jax.retrieval import neighbors, rerank

_COLUMNS = ("id", "label", "coarse_label", "filename")
# Suffix of the columns of further levels: genus_label.
_LEVEL = "_label"
_FORMATS = (".npz", ".parquet", ".npy")
_MADE_BY = "made_by"
_MADE_BY_NPY = ".made_by.json"
_REMEDY = "write it again with experiments/embed.py"
# Types of embeddings in a .npy file. NumPy has no name for bfloat16: it writes and reads bytes.
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}
_BYTES = np.dtype("V2")


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Embeddings of a set of images with their ids and labels; unknown columns are None.

    Attributes:
      embedding: float32 [N, D]; of a .npy file, memory-mapped and as in the file, which may be of 16-bit floats.
      id: [N], unique integers or strings that identify the images.
      label: [N], fine labels, integers or strings.
      coarse_label: [N].
      filename: [N], paths of the images.
      further: labels [N] of further levels by name, from coarse to fine.
      made_by: "model" (digest), "layer", "step" and "path" of the network and whether vectors have "unit" length, as
        read from JSON; empty if unknown.
    """

    embedding: np.ndarray
    id: np.ndarray
    label: np.ndarray | None = None
    coarse_label: np.ndarray | None = None
    filename: np.ndarray | None = None
    further: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    made_by: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def levels(self) -> dict[str, np.ndarray]:
        """Known labels by level name, the format of `metrics.retrieval_metrics`; the fine level is named ""."""
        found = {"": self.label, "coarse": self.coarse_label, **self.further}
        return {name: labels for name, labels in found.items() if labels is not None}

    @property
    def finest(self) -> np.ndarray | None:
        """Names [N] of the finest known class of each image, "" if there is none; None if no label is known."""
        columns = (self.label, *[*self.further.values()][::-1], self.coarse_label)
        names = [column.astype(str) for column in columns if column is not None]
        if not names:
            return None
        return functools.reduce(lambda finer, coarser: np.where(finer == "", coarser, finer), names)

    @property
    def coarser(self) -> np.ndarray | None:
        """Labels of the level just above the finest."""
        return [self.coarse_label, *self.further.values()][-1]


def unit(embedding: np.ndarray) -> np.ndarray:
    """Scales non-zero rows [N, D] to unit length, with norms in float64; returns float32."""
    return (embedding / np.linalg.norm(embedding.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)


def check_alike(name: str, found: Mapping[str, Any], other: str, expected: Mapping[str, Any]) -> None:
    """Checks by two `made_by` that embeddings are comparable; warns if the model of only one of them is known.

    Args:
      name: what was found, in messages.
      found: its `made_by`.
      other: what it is compared with, in messages.
      expected: the `made_by` of that.

    Raises:
      UserError: they are of different models or layers.
    """
    differing = [
        key for key in found if key in expected and key not in ("path", "unit") and found[key] != expected[key]
    ]
    if differing:
        shown = (f"{k} {found[k]}, not {expected[k]}" for k in differing)
        raise UserError(
            f"{name}: found embeddings of another model or layer than {other} ({'; '.join(shown)}); expected the same "
            "model and --layer; write one of them again with experiments/embed.py."
        )
    if ("model" in found) != ("model" in expected):
        unknown, known = (name, other) if "model" in expected else (other, name)
        warn(f"{unknown}: found no record of the model of these embeddings; make sure that it is that of {known}")


def save(path: pathlib.Path, features: Features, *, dtype: str | None = None) -> None:
    """Writes features in the format given by the file extension; see `load`.

    Args:
      path: the file.
      features: what to write.
      dtype: "float32", or for .npy "bfloat16"; by default float32, and for .npy the type of the embeddings.

    Raises:
      UserError: an unknown extension or dtype, or a file that cannot be written.
    """
    check_format(path, dtype)
    columns = {name: getattr(features, name) for name in _COLUMNS if getattr(features, name) is not None}
    columns |= {level + _LEVEL: labels for level, labels in features.further.items()}
    embedding, made_by = features.embedding, json.dumps(features.made_by)
    if path.suffix != ".npy":
        embedding = embedding.astype(np.float32, copy=False)
    with writing(path):
        if path.suffix == ".npz":
            np.savez(path, embedding=embedding, made_by=np.array(made_by), **columns)
        elif path.suffix == ".npy":
            _write_npy(path, embedding, DTYPES[dtype] if dtype else embedding.dtype)
            with open(path.with_suffix(".csv"), "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
            path.with_suffix(_MADE_BY_NPY).write_text(made_by)
        else:
            import pyarrow
            import pyarrow.parquet

            values = pyarrow.array(embedding.reshape(-1))
            lists = pyarrow.FixedSizeListArray.from_arrays(values, embedding.shape[1])
            table = pyarrow.table(columns | {"embedding": lists})
            pyarrow.parquet.write_table(table.replace_schema_metadata({_MADE_BY: made_by}), path)


def _write_npy(path: pathlib.Path, embedding: np.ndarray, dtype: np.dtype) -> None:
    """Writes a part at a time, to another file first: `embedding` may be the file of this path, memory-mapped."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        part = pathlib.Path(folder, path.name)
        named = _BYTES if dtype == DTYPES["bfloat16"] else dtype
        written = np.lib.format.open_memmap(part, "w+", named, embedding.shape)
        for rows in rerank.slices(*embedding.shape):
            written[rows] = embedding[rows].astype(dtype, copy=False).view(named)
        written.flush()
        del written
        part.replace(path)


def load(path: pathlib.Path) -> Features:
    """Loads and validates features.

    - .npz: array `embedding` [N, D] and the optional arrays `id`, `label`, `coarse_label`, `filename` and, for further
      levels, `LEVEL_label` (such as `genus_label`), all [N], and `made_by`, a JSON string.
    - .parquet: the same names as columns, `embedding` as lists, `made_by` in the metadata.
    - .npy: the embeddings, memory-mapped if of this machine's 16- or 32-bit floats (NumPy's V2 counts as bfloat16); the
      other columns in a .csv and `made_by` in a .made_by.json of the same name.

    The default ids are the row numbers.

    Raises:
      UserError: a file that is missing, unreadable or without embeddings, or columns that do not match them.
    """
    check_format(path)
    with reading(path, _REMEDY):
        columns = {".npz": _read_npz, ".parquet": _read_parquet, ".npy": _read_npy}[path.suffix](path)
        made_by = json.loads(str(columns.pop(_MADE_BY, "{}")))
        if not isinstance(made_by, dict):
            raise ValueError(f"{_MADE_BY} is not a JSON object")
    if "embedding" not in columns:
        found = ", ".join(sorted(columns)) or "no columns"
        raise UserError(f"{path}: found {found}; expected embedding [N, D] and optionally {', '.join(_COLUMNS)} [N].")
    embedding = columns.pop("embedding")
    if embedding.dtype.kind not in "fiu" and embedding.dtype != DTYPES["bfloat16"]:
        raise UserError(f"{path}: found embedding of dtype {embedding.dtype}; expected numbers.")
    embedding = neighbors.in_parts(embedding)
    if path.suffix != ".npy":
        embedding = embedding.astype(np.float32, copy=False)
    neighbors.check_embeddings(f"{path}: embedding", embedding)
    for name, values in columns.items():
        if values.shape != (len(embedding),):
            raise UserError(f"{path}: found {name} of shape {values.shape}; expected ({len(embedding)},).")
        if values.dtype.kind not in "biuU":
            raise UserError(f"{path}: found {name} of dtype {values.dtype}; expected integers or strings.")
    if "id" in columns:
        neighbors.check_ids(f"{path}: id", columns["id"])
    further = {name.removesuffix(_LEVEL): columns.pop(name) for name in [*columns] if name not in _COLUMNS}
    return Features(embedding, **({"id": np.arange(len(embedding))} | columns), further=further, made_by=made_by)


def _is_read(name: str) -> bool:
    return name in ("embedding", *_COLUMNS) or (name.endswith(_LEVEL) and name != _LEVEL)


def check_format(path: pathlib.Path, dtype: str | None = None) -> None:
    """Raises UserError unless the extension is that of a known format, which can hold the dtype."""
    if path.suffix not in _FORMATS:
        raise UserError(f"{path}: found extension {path.suffix!r}; expected one of {', '.join(_FORMATS)}.")
    if dtype not in (None, *DTYPES) or (dtype == "bfloat16" and path.suffix != ".npy"):
        raise UserError(f"{path}: found dtype {dtype}; expected float32, or bfloat16 for .npy.")


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    return read_npz(path, lambda name: name == _MADE_BY or _is_read(name), (), _REMEDY)


def _read_parquet(path: pathlib.Path) -> dict[str, np.ndarray]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    columns = {_MADE_BY: np.array((table.schema.metadata or {}).get(_MADE_BY.encode(), b"{}").decode())}
    for name in filter(_is_read, table.column_names):
        if table[name].null_count:
            raise UserError(
                f"{path}: found {table[name].null_count} empty values of {name}; expected a value in every row."
            )
        values = table[name].to_numpy()
        if name == "embedding":
            values = np.stack(values) if len(table) else np.zeros((0, 0))
        columns[name] = values.astype(str) if values.dtype == object else values
    return columns


def _read_npy(path: pathlib.Path) -> dict[str, np.ndarray]:
    embedding: np.ndarray = np.lib.format.open_memmap(path, "r")
    embedding = embedding.view(DTYPES["bfloat16"]) if embedding.dtype == _BYTES else embedding
    columns: dict[str, np.ndarray] = {"embedding": embedding}
    if path.with_suffix(_MADE_BY_NPY).exists():
        columns[_MADE_BY] = np.array(path.with_suffix(_MADE_BY_NPY).read_text())
    if path.with_suffix(".csv").exists():
        with open(path.with_suffix(".csv"), newline="") as file:
            header, *rows = csv.reader(file)
        if max(map(len, itertools.chain(*rows)), default=0) > LONGEST:
            raise ValueError(f"a value in its .csv is longer than {LONGEST} characters")
        read = {name: np.array(values) for name, values in zip(header, zip(*rows, strict=True), strict=True)}
        columns = {name: values for name, values in read.items() if _is_read(name)} | columns
    return columns
