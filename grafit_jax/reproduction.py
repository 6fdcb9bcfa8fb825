"""The runs of a table: trains what is missing and collects what is there."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from grafit_jax import config as config_lib
from grafit_jax import environment, evaluation, experiment, report, train, workdir
from grafit_jax.data import sources
from grafit_jax.errors import UserError
from grafit_jax.report import Result
from grafit_jax.tables import RAW_PIXELS, Row, Table


def run(
    table: Table,
    path: pathlib.Path,
    *,
    root: pathlib.Path,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    data_dir: str = "",
    data_source: str = "",
    pretrained: str = "",
) -> list[Result]:
    """Trains what is missing under `path` and collects the results of the table, row by row.

    Args:
      table: which.
      path: where its runs are.
      root: of the repository.
      seeds: of every row, in place of the table's own.
      only: these rows alone, by name.
      data_dir: TFDS's data directory.
      data_source: where the same images lie, in place of the config's data.source; empty for that.
      pretrained: the file of weights, for a table whose trunks start from one.
    """
    if table.pretrained != bool(pretrained):
        if table.pretrained:
            raise UserError("the table's trunks start pretrained: found no file of weights, want --pretrained=FILE.")
        raise UserError(f"the table's trunks start from scratch: found {pretrained} of weights, want no --pretrained.")
    unknown = set(only or ()) - {row.name for row in table.rows}
    if unknown:
        names = ", ".join(row.name for row in table.rows)
        raise UserError(f"the table has no {', '.join(sorted(unknown))}: its rows are {names}.")

    def one(row: Row, seed: int) -> Result:
        directory = run_directory(path, row.name, seed)
        arg = f"{row.arg},seed={seed}"
        if row.start is not None:  # whose run may not be there yet
            one(row.start, seed)
            arg += f",from={run_directory(path, row.start.name, seed)}"
        config = config_lib.load_file(root / row.config, arg)
        config.update_from_flattened_dict(dict(row.overrides))
        config.data.data_dir = data_dir
        config.data.source = data_source or config.data.source
        if table.pretrained:
            config.model.pretrained = pretrained
        if (directory / "metrics.json").exists():
            workdir.claim(directory, config)  # refuses the results of another config
        else:
            train.train(config, directory)
        changes = "".join(f" --config.{key}={value}" for key, value in row.overrides.items())
        command = f"python experiments/train.py --config={row.config}:{arg}{changes} --workdir={directory}"
        return report.collect(directory) | {"command": command}

    results = []
    for row in table.rows:
        if only is not None and row.name not in only:
            continue
        if row.name == RAW_PIXELS:
            results.append(_raw_pixels(row, path / row.name, root))
            continue
        for seed in range(row.seeds) if seeds is None else seeds:
            results.append(one(row, seed))
    return results


def run_directory(path: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Of the run of a row: under its name, with the seed if it is not 0."""
    return path / (f"{name}_seed{seed}" if seed else name)


def _raw_pixels(row: Row, path: pathlib.Path, root: pathlib.Path) -> Result:
    config = config_lib.load_file(root / row.config, row.arg)
    records = sources.load(**config.data)
    train_split, test_split = (
        evaluation.Embedded(records[s].image.reshape(len(records[s]), -1).astype(np.float32), records[s].labels)
        for s in ("train", "test")
    )
    e = config.eval
    metrics = evaluation.evaluate(
        test_split, train_split, ks=e.recall_at, knn_k=e.knn_k, knn_temperature=e.knn_temperature
    )
    path.mkdir(parents=True, exist_ok=True)
    workdir.write(path / "metrics.json", json.dumps(metrics) + "\n")
    return {"method": RAW_PIXELS, "seed": 0, "metrics": metrics, "run": environment.describe(), "config": {}}


def draw(table: Table, path: pathlib.Path) -> pathlib.Path:
    """The gallery of the table's two rows, seed 0, as `path`/gallery.png."""
    embeddings = {}
    for name in table.gallery:
        run_, state = experiment.restore_newest(run_directory(path, name, 0))
        test = run_.records["test"]
        embeddings[name] = run_.embed_fn(experiment.variables(state), test.image)["trunk"]
    target = path / "gallery.png"
    report.gallery(target, test, embeddings)
    return target
