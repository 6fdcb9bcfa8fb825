"""Checkpoints: the only file that knows Orbax."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from grafit_jax import parallel
from grafit_jax.errors import UserError
from grafit_jax.memory import Memory


class Checkpoints:
    """The checkpoints of one run, `workdir/checkpoints/<step>/`, written in the background.

    A checkpoint holds two trees: `state` (parameters, target, batch statistics, optimiser, RNG, step) and `memory`, the
    rows of all devices one behind the other. Both restore on any number of devices. The newest `keep` checkpoints stay,
    and beside them the best one by fine mAP (coarse mAP without fine labels), where evaluations were made.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1, read_only: bool = False):
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            # Named, so that a manager that has saved nothing yet can tell what a checkpoint holds.
            item_handlers={item: ocp.StandardCheckpointHandler() for item in ("state", "memory")},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(keep),
                        checkpoint_managers.BestN(get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False),
                    ]
                ),
                best_fn=_quality,  # without it Orbax does not write the metrics down, and forgets the best at a restart
                read_only=read_only,
                create=not read_only,
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, memory: Any, metrics: dict[str, float] | None = None) -> None:
        """Starts to write; the values are copied before this returns, so that they may be donated.

        All processes have to call it.
        """
        items = {"state": jax.tree.map(parallel.everywhere, _present(state))}
        if memory is not None:
            items["memory"] = {"embedding": parallel.joined(memory.embedding)}
        saved = {item: ocp.args.StandardSave(tree) for item, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**saved), metrics=metrics or None)

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
        """The memory of that step on the devices of `like`, whose labels it takes.

        Behind the last image there is padding, as much as the number of devices makes it: what is cut off or filled up
        for other devices is padding alone.

        Raises:
          UserError: as for `restore_state`.
        """
        wanted = parallel.joined(like.embedding)
        rows = self._shapes(step, "memory").get("embedding", (0,))[0]
        self._check(step, "memory", {"embedding": (rows, *wanted.shape[1:])})
        abstract = {"embedding": ocp.utils.to_shape_dtype_struct(wanted)}
        restored = self._restore(step, "memory", abstract, strict=False)
        return dataclasses.replace(like, embedding=parallel.from_joined(restored["embedding"]))

    def _check(self, step: int, item: str, wanted: dict[str, tuple[int, ...]]) -> None:
        """Raises UserError unless the item has arrays of these names and shapes."""
        found = self._shapes(step, item)
        for name in sorted(found.keys() | wanted.keys()):
            there, here = found.get(name, "missing"), wanted.get(name, "missing")
            if there != here:
                raise UserError(
                    f"checkpoint {self._manager.directory / str(step)} is of another architecture: {name} is {there} "
                    f"there and {here} here; use the config that it was trained with, or another workdir."
                )

    def _shapes(self, step: int, item: str) -> dict[str, tuple[int, ...]]:
        metadata = self._manager.item_metadata(step)[item]
        return {} if metadata is None else _shapes(metadata.tree)

    def _restore(self, step: int, item: str, like: Any, *, strict: bool = True) -> Any:
        wanted = ocp.args.StandardRestore(like, strict=strict)
        return self._manager.restore(step, args=ocp.args.Composite(**{item: wanted}))[item]

    def read(self, step: int, item: str) -> Any:
        """The item as nested dictionaries of numpy arrays, whatever devices it was written on."""
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        found = self._manager.item_metadata(step)[item].tree
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), found)
        return jax.tree.map(np.asarray, self._restore(step, item, abstract))

    def wait(self) -> None:
        """Waits for what is being written; raises what went wrong there."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        self.wait()
        self._manager.close()


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
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): tuple(leaf.shape)
        for path, leaf in leaves
    }
