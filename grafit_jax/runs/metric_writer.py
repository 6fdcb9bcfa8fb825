"""Writes the metrics of a run to metrics.jsonl, TensorBoard and the progress bar."""

import pathlib
from typing import Any

from grafit_jax import parallel
from grafit_jax.errors import warn
from grafit_jax.runs import console, workdir


class MetricWriter:
    """Writer of metrics. All processes call it; only the first one writes.

    Attributes:
      evaluations: step -> metrics, including `step`, of all evaluations so far.
    """

    def __init__(self, path: pathlib.Path, *, start: int, total_steps: int, batch_size: int, name: str):
        """Opens the log in the workdir `path` and cuts what was logged after step `start`, where the run resumes."""
        import tensorboardX  # imported here because it is slow

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
        """Advances the progress bar."""
        self._bar.update(taken * self._batch_size)

    def epoch(self, line: dict[str, Any]) -> None:
        """Writes the means of an epoch, including `step`."""
        self._bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
        workdir.append_log(self._path, line)
        self._to_tensorboard("train", line)

    def evaluation(self, metrics: dict[str, float]) -> None:
        """Writes the metrics of an evaluation, including `step`."""
        line = {workdir.EVAL + name: value for name, value in metrics.items() if name != "step"}
        workdir.append_log(self._path, line | {"step": metrics["step"]})
        self.evaluations[int(metrics["step"])] = metrics  # only after the log holds it
        self._to_tensorboard("eval", metrics)

    def _to_tensorboard(self, group: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{group}/{name}", value, values["step"])

    def close(self) -> None:
        self._bar.close()
        try:
            self._tensorboard.close()
        except OSError as error:  # on a full disk; saving a checkpoint raises the error
            warn(f"{self._path / 'tensorboard'}: cannot write the last events ({error}).")
