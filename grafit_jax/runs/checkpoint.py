"""Checkpoints of a run. This is the only module that imports Orbax."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array
from orbax.checkpoint import checkpoint_managers

from grafit_jax import parallel
from grafit_jax.errors import UserError, warn
from grafit_jax.memory import Memory

# Timeout of a save. Orbax measures it by the wall clock, which may jump by years on a host whose clock was never set.
# The multi-host watchdog detects a save that hangs.
_TEN_YEARS = 10 * 365 * 24 * 3600
# The parts of the state that are the online network.
_WEIGHTS = ("params", "batch_stats")
# Odd, so that flipping a single bit changes the digest.
_FACTORS = (0x9E3779B1, 0x85EBCA77)


class Checkpoints(checkpoint_managers.PreservationPolicy):
    """The checkpoints of one run, `workdir/checkpoints/<step>/`, written in the background.

    A checkpoint holds two trees: `state` (parameters, target, batch statistics, optimizer, RNG, step) and `memory` (the
    rows of all devices, concatenated). Both restore on any number of devices. A third item, `record`, is JSON: digests
    of both trees, to detect damage, and facts about the run. The newest `keep` checkpoints are kept, plus the best one
    by fine mAP (coarse mAP without fine labels).

    Attributes:
      evaluations: step -> metrics of the run's evaluations so far, set by the caller; without it, no checkpoint counts
        as the best.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1, read_only: bool = False):
        self.evaluations: Mapping[int, dict[str, float]] = {}
        self._keep, self._read_only = keep, read_only
        self._folder = (workdir / "checkpoints").absolute()
        arrays = ocp.StandardCheckpointHandler
        self._manager = ocp.CheckpointManager(
            self._folder,
            # Named explicitly, so that a manager that has not saved anything can read item metadata.
            item_handlers={"state": arrays(), "memory": arrays(), "record": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,  # left by a run that was killed while it saved
                preservation_policy=None if read_only else self,
                async_options=ocp.AsyncOptions(timeout_secs=_TEN_YEARS),
            ),
        )

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> list[bool]:
        """Returns which checkpoints to keep; called by Orbax."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        evaluated = {_quality(self.evaluations[step]): step for step in steps if step in self.evaluations}
        kept = {*steps[-self._keep :], *([evaluated[max(evaluated)]] if evaluated else [])}
        return [step in kept for step in steps]

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, memory: Memory | None, record: dict[str, Any] | None = None) -> None:
        """Starts writing a checkpoint in the background; all processes must call it.

        The arrays are copied before it returns, so they may be donated. `restore_newest` returns `record` again.
        """
        items = _items(state, memory)
        saved: dict[str, Any] = {item: ocp.args.StandardSave(tree) for item, tree in items.items()}
        computed = {item: digests(tree) for item, tree in items.items()}
        saved["record"] = ocp.args.JsonSave((record or {}) | {"digests": computed})
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**saved))

    def restore_newest(self, state: Any, memory: Memory | None = None) -> tuple[Any, Memory | None, dict] | None:
        """Returns (state, memory, record) of the newest undamaged checkpoint, or None; all processes must call it.

        Moves a damaged checkpoint to `checkpoints/damaged-<step>`, with a warning.

        Args:
          state: template with the structure, shapes and devices to restore to.
          memory: template of the memory; None skips it. The number of padding rows at its end depends on the number of
            devices, so only padding is cut off or added when that number changes.

        Raises:
          UserError: the checkpoint is of another architecture.
        """
        like = _items(state, memory)

        def read(step):
            self._check_architecture(step, like)
            found, record = self._restore(step, jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
            fields = jax.tree.map(functools.partial(parallel.everywhere, all_processes=False), found["state"])
            rows = jax.tree.map(parallel.from_joined, found.get("memory"))
            restored_memory = None if memory is None else Memory(rows["embedding"], rows["label_plus_1"] - 1)
            return dataclasses.replace(state, **fields), restored_memory, record

        return self._newest_undamaged(read)

    def _newest_undamaged(self, read: Callable[[int], Any]) -> Any | None:
        """Returns `read(step)` for the newest checkpoint that `read` can load, or None."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, reason = None, "another process could not read it"
            try:
                found = read(step)
            except UserError:
                raise
            except Exception as error:  # Orbax may raise any type on damaged files
                reason = _in_short(error)
            if parallel.all_agree(found is not None):
                return found
            self._set_aside(step, reason)
            self._manager.reload()
        return None

    def _set_aside(self, step: int, reason: str) -> None:
        damaged = self._folder / str(step)
        if self._read_only:
            warn(f"{damaged}: found a damaged checkpoint ({reason}); skipped it.")
            return
        aside = damaged.with_name(f"damaged-{step}")
        if parallel.is_first():
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(damaged, aside)
            warn(f"{damaged}: found a damaged checkpoint ({reason}); moved it to {aside}, restoring the one before it.")
        parallel.all_agree(True)  # a barrier: the other processes wait for the rename

    def _restore(self, step: int, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the items of `like`, and the record; raises an error of any type if the digests differ."""
        # Not strict for a memory, whose number of rows depends on the number of devices.
        arguments: dict[str, Any] = {
            item: ocp.args.StandardRestore(tree, strict=item == "state") for item, tree in like.items()
        }
        found = self._manager.restore(step, args=ocp.args.Composite(**arguments, record=ocp.args.JsonRestore()))
        items = {item: found[item] for item in like}
        _compare(items, found["record"]["digests"])
        return items, found["record"]

    def _check_architecture(self, step: int, like: dict[str, Any]) -> None:
        """Raises UserError unless the checkpoint has arrays of these names and shapes."""
        metadata = self._manager.item_metadata(step)
        for item, tree in like.items():
            if metadata[item] is None:
                raise ValueError(f"found no {item}")
            saved, expected = _shapes(metadata[item].tree), _shapes(tree)
            for name in sorted(saved.keys() | expected.keys()):
                there, here = saved.get(name, "missing"), expected.get(name, "missing")
                if there[item == "memory" :] != here[item == "memory" :]:
                    raise UserError(
                        f"{self._folder / str(step)}: found a checkpoint of another architecture ({name}: {there}); "
                        f"expected {here}; use the config that it was trained with, or another workdir."
                    )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns errors of writing into UserError; an error in the background is raised by the next call."""
        try:
            yield
        except Exception as error:  # Orbax may raise any type
            complete = _steps(self._folder)
            newest = f"the newest one is of step {complete[0]}" if complete else "there is none yet"
            raise UserError(
                f"{self._folder}: cannot write a checkpoint ({_in_short(error)}); {newest}; free disk space or make "
                "the folder writable, then start again."
            ) from error

    def wait(self) -> None:
        """Waits until the pending checkpoint is written; raises UserError if that fails."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, then closes the manager."""
        self.wait()
        self._manager.close()


def read_weights(workdir: pathlib.Path, step: int | None = None) -> tuple[dict[str, Any], int]:
    """Reads the parameters and batch statistics of the online network, and nothing else of a checkpoint.

    The checkpoint may have been written on any devices.

    Args:
      workdir: the workdir of a run.
      step: the step of the checkpoint; None for the newest undamaged one.

    Returns:
      {"params": ..., "batch_stats": ...} as nested dictionaries of numpy arrays, and the step.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    folder = (workdir / "checkpoints").absolute()
    steps = _steps(folder)
    if not steps:
        raise UserError(f"{workdir}: found no checkpoint; expected the first one of the training; let it save one.")
    if step is not None and step not in steps:
        raise UserError(f"{workdir}: found no checkpoint of step {step}; use one of {', '.join(map(str, steps))}.")
    for each in steps if step is None else [step]:
        try:
            return _read_weights(folder / str(each)), each
        except Exception as error:  # Orbax may raise any type on damaged files
            if _steps(folder) != steps:  # a training has just replaced a checkpoint
                return read_weights(workdir, step)
            if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
                raise UserError(f"{folder / str(each)}: found no permission to read; make it readable.") from error
            warn(f"{folder / str(each)}: found a damaged checkpoint ({_in_short(error)}); skipped it.")
    raise UserError(f"{workdir}: found damaged checkpoints only; train again in another --workdir.")


def _steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, newest first."""
    return sorted((int(path.name) for path in folder.glob("*") if path.name.isdigit()), reverse=True)


def _read_weights(folder: pathlib.Path) -> dict[str, Any]:
    handler, sharding = ocp.PyTreeCheckpointHandler(), jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    saved = handler.metadata(folder / "state").tree
    like = {
        name: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved[name])
        for name in _WEIGHTS
    }
    arguments = ocp.args.PyTreeRestore(
        item=like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
    )
    found = handler.restore(folder / "state", args=arguments)
    handler.close()
    digests_saved = json.loads((folder / "record" / "metadata").read_text())["digests"]["state"]
    _compare({"state": found}, {"state": {k: v for k, v in digests_saved.items() if k.partition("/")[0] in _WEIGHTS}})
    return jax.tree.map(np.asarray, found)


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _items(state: Any, memory: Memory | None) -> dict[str, Any]:
    """Returns the trees of a checkpoint, as global arrays.

    Omits fields of the state that are None. Padding rows of the memory are all zeros, their labels too.
    """
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    fields = {name: value for name, value in fields.items() if value is not None}
    items = {"state": jax.tree.map(parallel.everywhere, fields)}
    if memory is not None:
        rows = {"embedding": memory.embedding, "label_plus_1": memory.label + 1}
        items["memory"] = jax.tree.map(parallel.joined, rows)
    return items


def _quality(metrics: dict[str, float]) -> float:
    return metrics["map"] if "map" in metrics else metrics.get("coarse/map", 0.0)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {_name(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: Sequence[Any]) -> str:
    """Returns a leaf's path, the same for dataclasses and for the dictionaries that Orbax restores in their place."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


# Digests detect damaged arrays. They do not depend on the number of devices or hosts, or on the order of summation.


def _compare(items: dict[str, Any], saved: dict[str, dict[str, str]]) -> None:
    """Raises ValueError unless the trees have the digests that were saved."""
    for item, tree in items.items():
        found = digests(tree)
        differing = [name for name in found.keys() | saved[item].keys() if found.get(name) != saved[item].get(name)]
        if differing:
            raise ValueError(f"{item}/{min(differing)} differs from its saved digest")


def digests(tree: Any) -> dict[str, str]:
    """Returns path of a leaf -> digest of its bits and their positions, 16 hexadecimal digits.

    Trailing rows of zeros do not change a digest. All processes that hold a shard of an array must call it.
    """
    groups: dict[tuple[Any, ...], dict[str, Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        groups.setdefault((leaf.shape, leaf.dtype), {})[_name(path)] = leaf
    found = _digests([[*group.values()] for group in groups.values()])
    return {
        name: "".join(f"{int(half):08x}" for half in digest)
        for group, of_group in zip(groups.values(), found, strict=True)
        for name, digest in zip(group, np.asarray(of_group.addressable_data(0)), strict=True)
    }


@jax.jit
def _digests(groups: list[list[Array]]) -> list[Array]:
    """Returns uint32 [n, 2] for each group of n arrays of the same shape, which are traced together."""
    return [jax.vmap(_digest)(jnp.stack(group)) if len(group) > 1 else _digest(group[0])[None] for group in groups]


def _digest(x: Array) -> Array:
    """Returns uint32 [2]: sums modulo 2^32 of each element's bits, times an odd factor that depends on its position."""
    bits = jnp.asarray(x).view(f"uint{x.dtype.itemsize * 8}").astype(jnp.uint32)
    position = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
    # Mixes the bits of an element first; otherwise flipping the top bit would change the sum alike at every position.
    mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x2C1B3C6D)
    sums = [jnp.sum((mixed ^ (mixed >> 12)) * (2 * (position * jnp.uint32(f) ^ (position >> 7)) + 1)) for f in _FACTORS]
    return jnp.stack(sums).astype(jnp.uint32)
