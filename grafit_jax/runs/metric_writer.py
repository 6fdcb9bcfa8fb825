"""Where the metrics of a run go while it trains: metrics.jsonl, TensorBoard, and the bar on a terminal."""

import pathlib
from typing import Any

from grafit_jax import parallel
from grafit_jax.errors import warn
from grafit_jax.runs import console, workdir


class MetricWriter:
    """The first process writes; all processes call it alike.

    Attributes:
      evaluations: step -> metrics, with their `step`, of all evaluations so far.
    """

    def __init__(self, path: pathlib.Path, *, start: int, total_steps: int, batch_size: int, name: str):
        """For a run in the workdir `path` that resumes after step `start`: what was logged after it is cut."""
        import tensorboardX  # here, since it takes a while to import

        self._path, self._batch_size = path, batch_size
        lines = workdir.cut_log(path, start)
        self.evaluations: dict[int, dict[str, float]] = {
            line["step"]: found | {"step": line["step"]} for line in lines if (found := workdir.evaluation(line))
        }
        self._tensorboard = tensorboardX.SummaryWriter(
            str(path / "tensorboard"), purge_step=start + 1 if start else None, write_to_disk=parallel.is_first()
        )
        images = {"total": total_steps * batch_size, "initial": start * batch_size}
        self._bar = console.bar(desc=name, unit="img", unit_scale=True, **images)

    def steps(self, taken: int) -> None:
        """After each call of the step function."""
        self._bar.update(taken * self._batch_size)

    def epoch(self, line: dict[str, Any]) -> None:
        """The means of an epoch, with its `step`."""
        self._bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
        workdir.append_log(self._path, line)
        self._to_tensorboard("train", line)

    def evaluation(self, metrics: dict[str, float]) -> None:
        """The metrics of an evaluation, with its `step`."""
        line = {workdir.EVAL + name: value for name, value in metrics.items() if name != "step"}
        workdir.append_log(self._path, line | {"step": metrics["step"]})
        self.evaluations[int(metrics["step"])] = metrics  # once it is in the log
        self._to_tensorboard("eval", metrics)

    def _to_tensorboard(self, group: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{group}/{name}", value, values["step"])

    def close(self) -> None:
        self._bar.close()
        try:
            self._tensorboard.close()
        except OSError as error:  # of a full disk, which the checkpoints tell of too
            warn(f"what TensorBoard shows is not complete ({error}).")
