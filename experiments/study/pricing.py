"""What runs will take, before they are started: from recorded runs, measured or by arithmetic."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from grafit_jax import methods
from grafit_jax.report.tables import plain_table
from grafit_jax.runs.results import Result
from study import published, recording, reproduction, tables
from study.recording import RAW_PIXELS
from study.reproduction import Recorded, RowRun

# Runs whose steps take the same time, an image and a view.
_NET = ("model.trunk", "model.stem", "model.dtype", "views.size")


class Price(NamedTuple):
    """Seconds of training, or None where no recorded run tells; and what they rest on."""

    seconds: float | None
    by: str


def price(point: RowRun, known: Iterable[Result]) -> Price:
    """What the training of a run takes on the machine of the recorded ones; evaluation and compiling come on top.

    Measured: the mean over recorded runs of the same config, whatever their seed. By arithmetic: epochs x training
    images x forward passes, at the pace of recorded runs of the same network at the same size; those with as many
    passes of an image, if there are any. The number of training images is that of a recorded run on the same data.
    """
    if point.row.name == RAW_PIXELS:
        return Price(0.0, "no training")
    config = _seedless(point.flat)
    trained = [(_seedless(r["config"]), r["run"]) for r in known if "train_seconds" in r["run"]]
    same = [run["train_seconds"] for other, run in trained if other == config]
    if same:
        return Price(sum(same) / len(same), f"measured, {len(same)} run{'s' if len(same) > 1 else ''}")
    images = [run["train_images"] for other, run in trained if _data(other) == _data(config)]
    images = images or [run["train_images"] for other, run in trained if _elsewhere(other) == _elsewhere(config)]
    alike = [(other, run) for other, run in trained if all(other[key] == config[key] for key in _NET)]
    passes = _passes(config)
    alike = [(other, run) for other, run in alike if _passes(other) == passes] or alike
    if not images or not alike:
        return Price(None, "no recorded run of this network on these data")
    computed = sum(other["train.epochs"] * run["train_images"] * _passes(other) for other, run in alike)
    pace = sum(run["train_seconds"] for _, run in alike) / computed
    return Price(
        config["train.epochs"] * images[0] * passes * pace,
        f"arithmetic, {1e3 * pace:.3g} ms a forward pass in {len(alike)} run{'s' if len(alike) > 1 else ''}",
    )


def _passes(config: Mapping[str, Any]) -> int:
    return methods.get(config["method"]).passes(config["views.num_views"])


def _seedless(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config makes a difference to the time of its run."""
    rest = {key: value for key, value in recording.comparable(config).items() if key != "seed"}
    return rest | {key: tables.row_of(rest[key]) for key in recording.STARTS if key in rest}


def _data(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key.startswith("data.") and key != "data.train_level"}


def _elsewhere(config: dict[str, Any]) -> dict[str, Any]:
    """The data but for where an npz lies."""
    found = _data(config)
    return found | {"data.source": "npz:" if found["data.source"].startswith("npz:") else found["data.source"]}


class Budget:
    """A time limit for several runs: refuses the runs that would not end in time.

    For compilation, evaluation and writing a run is allowed 1.25 times what the slowest run so far needed; the first
    run is allowed 90 seconds. A resumed run is priced as if it started from the beginning.
    """

    def __init__(
        self, seconds: float, known: Iterable[Result], *, on_cpu: bool, clock: Callable[[], float] = time.monotonic
    ):
        """`known` are results whose times are known; those of the kind of device at hand count (`on_cpu`)."""
        self._clock, self._seconds, self._end = clock, seconds, clock() + seconds
        self._known = [result for result in known if ("cpu" in result["run"].get("device", "cpu")) == on_cpu]
        self._around: list[float] = []

    def refusal(self, missing: Sequence[RowRun]) -> str | None:
        """Why these runs, one after the other, are not to be started; None if they are."""
        prices = [price(point, self._known) for point in missing]
        around = 1.25 * max(self._around, default=72.0)
        known = [p.seconds + around for p in prices if p.seconds is not None]
        if len(known) < len(prices):
            return "no recorded run gives its time: train it once without --budget_minutes"
        left, takes = self._end - self._clock(), sum(known)
        if not known or takes <= left:
            return None
        by = ", ".join(dict.fromkeys(p.by for p in prices))
        needs = f"takes {takes / 60:.1f} minutes ({by}), and {max(left, 0) / 60:.1f} are left"
        return f"{needs}: {reproduction.AGAIN if takes <= self._seconds else 'give it more --budget_minutes'}"

    def trained(self, result: Result, seconds: float) -> None:
        """Notes a run that was trained from its start, and the seconds that it took in all."""
        self._around.append(max(0.0, seconds - result["run"]["train_seconds"]))
        self._known.append(result)


def plan(tables: Mapping[str, Sequence[RowRun]], recorded: Recorded, known: Sequence[Result], *, jobs: int = 1) -> str:
    """What training the runs of some tables takes, row by row, for a terminal.

    Args:
      tables: name -> its runs.
      recorded: results that are not trained again.
      known: results whose times are known.
      jobs: how many runs at a time.
    """
    lines, total, unknown, done = [], 0.0, 0, set()
    for table, wanted in tables.items():
        missing = [point for point in reproduction.missing(wanted, recorded) if point.directory not in done]
        done |= {point.directory for point in missing}
        for row in dict.fromkeys(point.row.name for point in [*wanted, *missing]):
            asked = sum(point.row.name == row for point in wanted)
            prices = [price(point, known) for point in missing if point.row.name == row]
            seconds = [p.seconds for p in prices if p.seconds is not None]
            total, unknown = total + sum(seconds), unknown + len(prices) - len(seconds)
            hours = "-" if not prices else f"{sum(seconds) / 3600:.2f}" if len(seconds) == len(prices) else "?"
            by = prices[0].by if prices else "there, or above"
            if hours == "?" and published.time(table, row):
                by += f"; by its FLOP {published.time(table, row)}"
            lines.append([table, row, asked, len(prices), hours, by])
    text = plain_table(["table", "row", "runs", "to train", "hours", "by"], lines)
    rest = f", and {unknown} runs of which no recorded one tells" if unknown else ""
    at_a_time = f", {jobs} at a time in {total / jobs / 3600:.2f} hours" if jobs > 1 else ""
    return f"{text}\n\ntotal: {total / 3600:.2f} hours of training for {len(done) - unknown} runs{at_a_time}{rest}"
