"""Checkpoints: the only file that knows Orbax."""

import contextlib
import dataclasses
import functools
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

# Of a save. Orbax takes it by the clock, which may jump by years where it was never set; what really hangs is found out
# by the watchdog of a run of several hosts.
_TEN_YEARS = 10 * 365 * 24 * 3600
# Odd numbers, so that a change of a single bit changes the digest.
_FACTORS = (0x9E3779B1, 0x85EBCA77)


class Checkpoints(checkpoint_managers.PreservationPolicy):
    """The checkpoints of one run, `workdir/checkpoints/<step>/`, written in the background.

    A checkpoint holds two trees: `state` (parameters, target, batch statistics, optimiser, RNG, step) and `memory`, the
    rows of all devices one behind the other. Both restore on any number of devices. Beside them, `record` is JSON: the
    digests of both, by which damage is found out, and whatever the run has to say. The newest `keep` checkpoints stay,
    and beside them the best one by fine mAP (coarse mAP without fine labels), where evaluations were made.

    Attributes:
      evaluations: step -> metrics, of the run's evaluations so far; its owner sets it, and without it none is the best.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1, read_only: bool = False):
        self.evaluations: Mapping[int, dict[str, float]] = {}
        self._keep, self._read_only = keep, read_only
        self._folder = (workdir / "checkpoints").absolute()
        arrays = ocp.StandardCheckpointHandler
        self._manager = ocp.CheckpointManager(
            self._folder,
            # Named, so that a manager that has saved nothing yet can tell what a checkpoint holds.
            item_handlers={"state": arrays(), "memory": arrays(), "record": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,  # what a run left that was cut short while it saved
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
        """Which checkpoints stay; Orbax asks."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        judged = {_quality(self.evaluations[step]): step for step in steps if step in self.evaluations}
        stay = {*steps[-self._keep :], *([judged[max(judged)]] if judged else [])}
        return [step in stay for step in steps]

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, memory: Memory | None, record: dict[str, Any] | None = None) -> None:
        """Starts to write; the values are copied before this returns, so that they may be donated.

        All processes have to call it. `record` is to be had from `restore_newest`.
        """
        items = _items(state, memory)
        saved: dict[str, Any] = {item: ocp.args.StandardSave(tree) for item, tree in items.items()}
        found = {item: digests(tree) for item, tree in items.items()}
        saved["record"] = ocp.args.JsonSave((record or {}) | {"digests": found})
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**saved))

    def restore_newest(self, state: Any, memory: Memory | None = None) -> tuple[Any, Memory | None, dict] | None:
        """(state, memory, record) of the newest checkpoint that is not damaged; None if there is none.

        A damaged one is set aside as `checkpoints/damaged-<step>`, with a warning. All processes have to call it.

        Args:
          state: as it is to be restored: structure, shapes and devices.
          memory: the same; None restores none. Behind its last image there is padding, as much as the number of devices
            makes it: what is cut off or filled up for other devices is padding alone.

        Raises:
          UserError: the checkpoint holds other arrays: it was written by another architecture.
        """
        like = _items(state, memory)

        def read(step):
            self._check_architecture(step, like)
            found, record = self._restore(step, jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
            of_state = jax.tree.map(functools.partial(parallel.everywhere, all_processes=False), found["state"])
            rows = jax.tree.map(parallel.from_joined, found.get("memory"))
            of_memory = None if memory is None else Memory(rows["embedding"], rows["label_plus_1"] - 1)
            return dataclasses.replace(state, **of_state), of_memory, record

        return self._newest_whole(read)

    def read_newest(self, item: str) -> Any | None:
        """The item of the newest checkpoint that is not damaged, as nested dictionaries of numpy arrays.

        Whatever devices it was written on; None if there is none.
        """

        def read(step):
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            there = self._manager.item_metadata(step)[item].tree
            like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), there)
            return jax.tree.map(np.asarray, self._restore(step, {item: like})[0][item])

        return self._newest_whole(read)

    def _newest_whole(self, read: Callable[[int], Any]) -> Any | None:
        """What `read` returns of the newest checkpoint that it does not find to be damaged."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, reason = None, "another process could not read it"
            try:
                found = read(step)
            except UserError:
                raise
            except Exception as error:  # whatever a reader says of damaged files
                reason = _in_short(error)
            if parallel.all_agree(found is not None):
                return found
            self._set_aside(step, reason)
            self._manager.reload()
        return None

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

    def _restore(self, step: int, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Items, as those of `like`, and the record; an error of any kind if they are not what was saved."""
        # The rows of a memory may be more or fewer.
        wanted: dict[str, Any] = {
            item: ocp.args.StandardRestore(tree, strict=item == "state") for item, tree in like.items()
        }
        found = self._manager.restore(step, args=ocp.args.Composite(**wanted, record=ocp.args.JsonRestore()))
        items = {item: found[item] for item in like}
        _compare(items, found["record"]["digests"])
        return items, found["record"]

    def _check_architecture(self, step: int, like: dict[str, Any]) -> None:
        """Raises UserError unless the checkpoint has arrays of these names and shapes."""
        metadata = self._manager.item_metadata(step)
        for item, tree in like.items():
            if metadata[item] is None:
                raise ValueError(f"found no {item} in it")
            found, wanted = _shapes(metadata[item].tree), _shapes(tree)
            for name in sorted(found.keys() | wanted.keys()):
                there, here = found.get(name, "missing"), wanted.get(name, "missing")
                if there[item == "memory" :] != here[item == "memory" :]:
                    raise UserError(
                        f"checkpoint {self._folder / str(step)} is of another architecture: {name} is {there} "
                        f"there and {here} here; use the config that it was trained with, or another workdir."
                    )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What goes wrong in the background comes out of the next call."""
        try:
            yield
        except Exception as error:  # Orbax's readers and writers raise of all kinds
            whole = [int(path.name) for path in self._folder.glob("*") if path.name.isdigit()]
            newest = f"that of step {max(whole)} is there" if whole else "there is none yet"
            raise UserError(
                f"a checkpoint cannot be written to {self._folder} ({_in_short(error)}): {newest}; make room, or make "
                "it writable, then start again."
            ) from error

    def wait(self) -> None:
        """Waits for what is being written; raises what went wrong there."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        self.wait()
        self._manager.close()


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _items(state: Any, memory: Memory | None) -> dict[str, Any]:
    """The trees of a checkpoint, as arrays of all processes.

    Fields of the state that are None are left out: a run has no use for them. Padding of the memory is 0 throughout.
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
    """A leaf's place in a tree, the same whether its nodes are dictionaries or, as Orbax gives them back, were once."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


# Whether arrays are what they were: a digest that no device count, host or order of addition changes.


def _compare(items: dict[str, Any], saved: dict[str, dict[str, str]]) -> None:
    """Raises ValueError unless the trees are those whose digests were saved."""
    for item, tree in items.items():
        found = digests(tree)
        differing = [name for name in found.keys() | saved[item].keys() if found.get(name) != saved[item].get(name)]
        if differing:
            raise ValueError(f"{item}/{min(differing)} is not what was saved")


def digests(tree: Any) -> dict[str, str]:
    """Path of a leaf -> 16 hexadecimal digits of its bits and their places.

    Rows of zeros at its end make no difference. All processes that hold a part of an array have to call it.
    """
    named = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    return {
        name: "".join(f"{int(half):08x}" for half in np.asarray(digest.addressable_data(0)))
        for name, digest in _digests(named).items()
    }


@jax.jit
def _digests(named: dict[str, Array]) -> dict[str, Array]:
    return {name: _digest(x) for name, x in named.items()}


def _digest(x: Array) -> Array:
    """uint32 [2]: sums, modulo 2^32, of each element's bits times an odd number that follows from its place."""
    bits = jnp.asarray(x).view(f"uint{x.dtype.itemsize * 8}").astype(jnp.uint32)
    place = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
    # Mixed over its own bits first, so that a flip of the uppermost one is not the same wherever it is.
    mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x2C1B3C6D)
    sums = [jnp.sum((mixed ^ (mixed >> 12)) * (2 * (place * jnp.uint32(f) ^ (place >> 7)) + 1)) for f in _FACTORS]
    return jnp.stack(sums).astype(jnp.uint32)
