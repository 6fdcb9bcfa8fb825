"""Tables: their rows, each a config of experiments/train.py, and their columns."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from grafit_jax import methods
from study.recording import RAW_PIXELS


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: the runs of one config, one for each seed.

    Attributes:
      name: name of the row; with the seed it names the runs' workdirs.
      config: path of the config file from the root of the repository.
      arg: arguments of the config file, without the seed.
      seeds: number of seeds.
      first: the first seed.
      start: row whose run of the same seed it starts from, passed to the config file as `init`.
      overrides: dotted key -> value, set in the resulting config.
    """

    name: str
    config: str
    arg: str
    seeds: int = 1
    first: int = 0
    start: "Row | None" = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: rows of runs, and the columns that show them.

    Attributes:
      rows: rows in order.
      columns: metric -> heading; the headline metric first.
      gallery: two rows whose neighbours are drawn side by side, or none.
      facts: name of a setting that distinguishes rows of one method -> its value for a run's config.
      notes: method -> remark shown after its name.
      pretrained: the weights that its trunks start from, a name on the hub; empty for trunks from scratch. --pretrained
        gives others, such as a file.
      folder: default folder of its runs in `runs`; empty for the table's name. Tables with the same folder share the
        runs of rows with the same name.
      layers: layers that are shown, a row for each.
      levels: label levels that are shown, a row for each, from coarse to fine; empty for the finest.
    """

    rows: tuple[Row, ...]
    columns: Mapping[str, str]
    gallery: tuple[str, ...] = ()
    facts: Mapping[str, Callable[[Mapping[str, Any]], str]] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pretrained: str = ""
    folder: str = ""
    layers: tuple[str, ...] = ("trunk", "projector")
    levels: tuple[str, ...] = ()


def by_method(
    config: str, arg: str, seeds: Mapping[str, int] | Iterable[str], levels: Iterable[str] = ("",)
) -> tuple[Row, ...]:
    """Returns a row for every method, or for every method and train level.

    Args:
      config: path of the config file.
      arg: its arguments before `method`; empty, or with a comma at the end.
      seeds: method -> number of seeds, or only methods, with one seed each.
      levels: values of the config file's argument `level`.
    """
    seeds = seeds if isinstance(seeds, Mapping) else dict.fromkeys(seeds, 1)

    def row(method: str, level: str) -> Row:
        if method == RAW_PIXELS:
            return Row(RAW_PIXELS, config, arg.rstrip(","))
        # ClusterFit clusters the features of the baseline.
        start = row("baseline", level) if methods.get(method).uses_clusters else None
        name, suffix = (f"{method}_{level}", f",level={level}") if level else (method, "")
        return Row(name, config, f"{arg}method={method}{suffix}", seeds.get(method, 1), start=start)

    return tuple(row(method, level) for level in levels for method in seeds)
