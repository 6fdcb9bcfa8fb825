"""What a table is made of: its rows, each a command line, and how they are shown."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from grafit_jax import methods
from study.recording import RAW_PIXELS

# Whose features ClusterFit clusters.
CLUSTERED = "baseline"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: the runs of one config, one for every seed.

    Attributes:
      name: of the row; with the seed it names the runs' directories.
      config: the config file, from the root of the repository.
      arg: what stands behind its colon, without the seed.
      seeds: how many.
      start: whose run of the same seed it starts from, given to the config file as `init`.
      overrides: dotted key -> value, of the config that comes out.
    """

    name: str
    config: str
    arg: str
    seeds: int = 1
    start: "Row | None" = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: rows of runs, and what is shown of them.

    Attributes:
      rows: in their order.
      columns: metric -> heading; the headline first.
      layers: the layers that are shown, a row for each.
      levels: the levels of labels that are shown, a row for each, from coarse to fine. Empty: the finest.
      gallery: two rows whose neighbours are drawn side by side, or none.
      facts: what tells rows of one method apart -> its value for a run's config.
      notes: method -> what is said behind its name.
      pretrained: whether its trunks start from a file of weights, which is given when it is run.
      folder: where its runs lie in `runs`, unless it is said; tables of one folder share the runs of rows of one name.
        Empty: the table's name.
    """

    rows: tuple[Row, ...]
    columns: Mapping[str, str]
    gallery: tuple[str, ...] = ()
    facts: Mapping[str, Callable[[Mapping[str, Any]], str]] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pretrained: bool = False
    folder: str = ""
    layers: tuple[str, ...] = ("trunk", "projector")
    levels: tuple[str, ...] = ()


def by_method(
    config: str, arg: str, seeds: Mapping[str, int] | Iterable[str], levels: Iterable[str] = ("",)
) -> tuple[Row, ...]:
    """A row for every method; where levels are named, for every method at every level that it is trained on.

    Args:
      config: the config file.
      arg: what stands behind its colon before the method; empty, or with a comma at its end.
      seeds: method -> how many seeds, or the methods alone, for one seed each.
      levels: as the config file's argument `level`.
    """
    seeds = seeds if isinstance(seeds, Mapping) else dict.fromkeys(seeds, 1)

    def row(method: str, level: str) -> Row:
        if method == RAW_PIXELS:
            return Row(RAW_PIXELS, config, arg.rstrip(","))
        start = row(CLUSTERED, level) if methods.get(method).uses_clusters else None
        name, suffix = (f"{method}_{level}", f",level={level}") if level else (method, "")
        return Row(name, config, f"{arg}method={method}{suffix}", seeds.get(method, 1), start)

    return tuple(row(method, level) for level in levels for method in seeds)
