"""Predicted training times: the mean over recorded runs of the same config, or unknown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grafit_jax import config as config_lib
from grafit_jax import open_keys
from grafit_jax.runs.results import Result
from grafit_jax.runs.tables import plain_table
from study import recording, reproduction
from study.recording import RAW_PIXELS
from study.reproduction import RowRun


def price(point: RowRun, known: Iterable[Result]) -> tuple[float | None, int]:
    """Returns the mean training time in seconds of known runs of the same config with any seed, and their number.

    Evaluation and compilation are not included. The mean is None if no run is known.
    """
    if point.row.name == RAW_PIXELS:
        return 0.0, 0

    def is_same(config: Mapping[str, Any]) -> bool:
        return _seedless(config) == _seedless(open_keys.completed(point.flat, config))

    same = [r["run"] for r in known if r["row"] == point.row.name and is_same(r["config"])]
    seconds = [run["train_seconds"] for run in same if "train_seconds" in run]
    return (sum(seconds) / len(seconds) if seconds else None), len(seconds)


def _seedless(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a config that affect the training time."""
    apart = ("seed", *config_lib.STARTS)  # every seed of a row starts from another run
    return {key: value for key, value in recording.comparable(config).items() if key not in apart}


def plan(
    tables: Mapping[str, Sequence[RowRun]], recorded: Sequence[Result], known: Sequence[Result], *, jobs: int = 1
) -> str:
    """Returns a table, for a terminal, of the training time of every row of some tables.

    Args:
      tables: name -> its runs.
      recorded: results that are not trained again.
      known: results with known times.
      jobs: number of runs at a time.
    """
    lines, total, unknown, done = [], 0.0, 0, set()
    for table, points in tables.items():
        missing = [point for point in reproduction.missing(points, recorded) if point.directory not in done]
        done |= {point.directory for point in missing}
        for row in dict.fromkeys(point.row.name for point in [*points, *missing]):
            asked = sum(point.row.name == row for point in points)
            prices = [price(point, known) for point in missing if point.row.name == row]
            seconds = [s for s, _ in prices if s is not None]
            total, unknown = total + sum(seconds), unknown + len(prices) - len(seconds)
            hours = "-" if not prices else f"{sum(seconds) / 3600:.2f}" if len(seconds) == len(prices) else "unknown"
            lines.append([table, row, asked, len(prices), hours, max((runs for _, runs in prices), default="-")])
    text = plain_table(["table", "row", "runs", "to train", "hours", "recorded runs"], lines)
    rest = f", and {unknown} runs of unknown time" if unknown else ""
    at_a_time = f", {jobs} at a time in {total / jobs / 3600:.2f} hours" if jobs > 1 else ""
    return f"{text}\n\ntotal: {total / 3600:.2f} hours of training for {len(done) - unknown} runs{at_a_time}{rest}"
