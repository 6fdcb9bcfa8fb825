"""Checkpoints: the only file that knows Orbax."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from grafit_jax import parallel
from grafit_jax.errors import UserError, warn
from grafit_jax.memory import Memory
from grafit_jax.runs import integrity

_ITEMS = {
    "state": ocp.StandardCheckpointHandler,
    "memory": ocp.StandardCheckpointHandler,
    "record": ocp.JsonCheckpointHandler,
}

# Of the memory's rows: the label plus 1.
_LABELS = "label_plus_1"
# Of a save. Orbax takes it by the clock, which may jump by years where it was never set; what really hangs is found out
# by the watchdog of a run of several hosts.
_TEN_YEARS = 10 * 365 * 24 * 3600


class Damaged(Exception):
    """A checkpoint that does not hold what was saved; the message says why."""


class Checkpoints:
    """The checkpoints of one run, `workdir/checkpoints/<step>/`, written in the background.

    A checkpoint holds two trees: `state` (parameters, target, batch statistics, optimiser, RNG, step) and `memory`, the
    rows of all devices one behind the other. Both restore on any number of devices. Beside them, `record` is JSON: the
    digests of both, by which damage is found out, and whatever the run has to say. The newest `keep` checkpoints stay,
    and beside them the best one by fine mAP (coarse mAP without fine labels), where evaluations were made.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1, read_only: bool = False):
        self._read_only = read_only
        self._folder = (workdir / "checkpoints").absolute()
        options: dict[str, Any] = {
            "read_only": read_only,
            "create": not read_only,
            "async_options": ocp.AsyncOptions(timeout_secs=_TEN_YEARS),
        }
        if not read_only:
            self._check_metrics()
            options["cleanup_tmp_directories"] = True  # what a run left that was cut short while it saved
            options["preservation_policy"] = checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(keep),
                    checkpoint_managers.BestN(get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False),
                ]
            )
            # Without it Orbax does not write the metrics down, and forgets the best at a restart.
            options["best_fn"] = _quality
        self._manager = ocp.CheckpointManager(
            self._folder,
            # Named, so that a manager that has saved nothing yet can tell what a checkpoint holds.
            item_handlers={item: handler() for item, handler in _ITEMS.items()},
            options=ocp.CheckpointManagerOptions(**options),
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        memory: Any,
        metrics: dict[str, float] | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        """Starts to write; the values are copied before this returns, so that they may be donated.

        All processes have to call it. `record` is to be had from `restore_newest`.
        """
        items = {"state": jax.tree.map(parallel.everywhere, _present(state))}
        if memory is not None:
            items["memory"] = _rows(memory)
        saved: dict[str, Any] = {item: ocp.args.StandardSave(tree) for item, tree in items.items()}
        digests = {item: integrity.digests(tree) for item, tree in items.items()}
        saved["record"] = ocp.args.JsonSave((record or {}) | {"digests": digests})
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**saved), metrics=metrics or None)

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of a checkpoint that was saved before its evaluation: it may be the best. All have to call it."""
        file = self._folder / str(step) / "metrics" / "metrics"
        if parallel.is_first() and file.parents[1].is_dir():
            with self._writing():
                file.parent.mkdir(exist_ok=True)
                temporary = file.with_suffix(".tmp")
                temporary.write_text(json.dumps(metrics))
                os.replace(temporary, file)
        parallel.all_agree(True)  # the others wait until it is done
        self._manager.reload()

    def restore_newest(self, state: Any, memory: Memory | None = None) -> tuple[Any, Memory | None, dict] | None:
        """(state, memory, record) of the newest checkpoint that is not damaged; None if there is none.

        A damaged one is set aside as `checkpoints/damaged-<step>`, and told of. All processes have to call it.

        Args:
          state: as it is to be restored: structure, shapes and devices.
          memory: the same; None restores none.

        Raises:
          UserError: the checkpoint holds other arrays: it was written by another architecture.
        """
        return self._newest_whole(lambda step: self._restore_checked(step, state, memory))

    def read_newest(self, item: str) -> Any | None:
        """The item of the newest checkpoint that is not damaged, as nested dictionaries of numpy arrays.

        Whatever devices it was written on; None if there is none.
        """

        def read(step):
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            found = self._manager.item_metadata(step)[item].tree
            abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), found)
            tree = self._restore(step, item, abstract)
            _compare({item: tree}, self._record(step)["digests"])
            return jax.tree.map(np.asarray, tree)

        return self._newest_whole(read)

    def _newest_whole(self, read: Callable[[int], Any]) -> Any | None:
        """What `read` returns of the newest checkpoint that it does not find to be damaged."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, reason = None, ""
            try:
                found = read(step)
            except UserError:
                raise
            except Exception as error:  # whatever a reader says of damaged files
                reason = " ".join(str(error).split())[:200] or type(error).__name__
            if parallel.all_agree(found is not None):
                return found
            self._set_aside(step, reason or "another process could not read it")
            self._manager.reload()
        return None

    def _restore_checked(self, step: int, state: Any, memory: Memory | None) -> tuple[Any, Memory | None, dict]:
        record = self._record(step)
        state = self.restore_state(step, state)
        found = {"state": jax.tree.map(parallel.everywhere, _present(state))}
        if memory is not None:
            memory = self.restore_memory(step, memory)
            saved = record["digests"].get("memory", {})
            found["memory"] = {name: array for name, array in _rows(memory).items() if name != _LABELS or name in saved}
        _compare(found, record["digests"])
        return state, memory, record

    def _record(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]

    def _check_metrics(self) -> None:
        """Sets aside checkpoints whose metrics are no JSON: Orbax reads those of all before anything else."""
        for file in sorted(self._folder.glob("*/metrics/metrics")):
            if file.parts[-3].isdigit():
                try:
                    json.loads(file.read_bytes())
                except ValueError as error:
                    self._set_aside(int(file.parts[-3]), f"its metrics: {error}")

    def _set_aside(self, step: int, reason: str) -> None:
        damaged = self._folder / str(step)
        if self._read_only:
            warn(f"checkpoint {damaged} is damaged ({reason}): passed over.")
            return
        aside = damaged.with_name(f"damaged-{step}")
        if parallel.is_first():
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(damaged, aside)
            warn(f"checkpoint {damaged} is damaged ({reason}): kept as {aside}, and the one before it is used.")
        parallel.all_agree(True)  # the others wait until it is done

    def restore_state(self, step: int, like: Any) -> Any:
        """The state of that step, with the structure, shapes and devices of `like`.

        Raises:
          UserError: the checkpoint holds other arrays: it was written by another architecture.
        """
        wanted = jax.tree.map(parallel.everywhere, _present(like))
        self._check(step, "state", _shapes(ocp.tree.serialize_tree(wanted, keep_empty_nodes=True)))
        restored = self._restore(step, "state", jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted))
        return dataclasses.replace(like, **jax.tree.map(parallel.from_everywhere, restored))

    def restore_memory(self, step: int, like: Memory) -> Memory:
        """The memory of that step on the devices of `like`.

        Behind the last image there is padding, as much as the number of devices makes it: what is cut off or filled up
        for other devices is padding alone.

        Raises:
          UserError: as for `restore_state`.
        """
        wanted, there = _rows(like), self._shapes(step, "memory")
        if _LABELS not in there:  # it was saved before labels were
            del wanted[_LABELS]
        rows = there.get("embedding", (0,))[0]
        self._check(step, "memory", {name: (rows, *array.shape[1:]) for name, array in wanted.items()})
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
        restored = jax.tree.map(parallel.from_joined, self._restore(step, "memory", abstract, strict=False))
        return Memory(restored["embedding"], restored[_LABELS] - 1 if _LABELS in restored else like.label)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What goes wrong in the background comes out of the next call."""
        try:
            yield
        except Exception as error:  # Orbax's readers and writers raise of all kinds
            whole = [int(path.name) for path in self._folder.glob("*") if path.name.isdigit()]
            newest = f"that of step {max(whole)} is there" if whole else "there is none yet"
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"a checkpoint cannot be written to {self._folder} ({reason}): {newest}; make room, or make it "
                "writable, then start again."
            ) from error

    def _check(self, step: int, item: str, wanted: dict[str, tuple[int, ...]]) -> None:
        """Raises UserError unless the item has arrays of these names and shapes."""
        found = self._shapes(step, item)
        for name in sorted(found.keys() | wanted.keys()):
            there, here = found.get(name, "missing"), wanted.get(name, "missing")
            if there != here:
                raise UserError(
                    f"checkpoint {self._folder / str(step)} is of another architecture: {name} is {there} "
                    f"there and {here} here; use the config that it was trained with, or another workdir."
                )

    def _shapes(self, step: int, item: str) -> dict[str, tuple[int, ...]]:
        metadata = self._manager.item_metadata(step)[item]
        if metadata is None:
            raise Damaged(f"found no {item} in it")
        return _shapes(metadata.tree)

    def _restore(self, step: int, item: str, like: Any, *, strict: bool = True) -> Any:
        wanted = ocp.args.StandardRestore(like, strict=strict)
        return self._manager.restore(step, args=ocp.args.Composite(**{item: wanted}))[item]

    def wait(self) -> None:
        """Waits for what is being written; raises what went wrong there."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        self.wait()
        self._manager.close()


def _compare(items: dict[str, Any], saved: dict[str, dict[str, str]]) -> None:
    """Raises `Damaged` unless the trees are those whose digests were saved."""
    for item, tree in items.items():
        found = integrity.digests(tree)
        differing = [name for name in found.keys() | saved[item].keys() if found.get(name) != saved[item].get(name)]
        if differing:
            raise Damaged(f"{item}/{min(differing)} is not what was saved")


def _rows(memory: Memory) -> dict[str, jax.Array]:
    """The rows of all devices of all processes; padding is 0 throughout."""
    return {"embedding": parallel.joined(memory.embedding), _LABELS: parallel.joined(memory.label + 1)}


def _present(tree: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not None: what a run has no use for is not in its checkpoints.

    So checkpoints from before there was such a field are those of runs that have no use for it.
    """
    values = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    return {name: value for name, value in values.items() if value is not None}


def _quality(metrics: dict[str, float]) -> float:
    return metrics["map"] if "map" in metrics else metrics.get("coarse/map", 0.0)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {integrity.name_of(path): tuple(leaf.shape) for path, leaf in leaves}
