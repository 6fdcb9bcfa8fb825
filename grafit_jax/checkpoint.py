"""Checkpoints: the only file that knows Orbax."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from grafit_jax.errors import UserError


class Checkpoints:
    """The checkpoints of one run, `workdir/checkpoints/<step>/`, written in the background.

    A checkpoint holds two trees: `state` (parameters, target, batch statistics, optimiser, RNG, step), which restores
    on any number of devices, and `memory`, whose rows lie as the devices had them. The newest `keep` checkpoints stay,
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
        """Starts to write; the values are copied before this returns, so that they may be donated."""
        items = {"state": state} if memory is None else {"state": state, "memory": memory}
        saved = {item: ocp.args.StandardSave(_present(tree)) for item, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**saved), metrics=metrics or None)

    def restore(self, step: int, item: str, like: Any) -> Any:
        """The item, "state" or "memory", of that step, with the structure, shapes and shardings of `like`.

        Raises:
          UserError: the checkpoint holds other arrays: it was written by another architecture, or, of the memory, on
            another number of devices.
        """
        metadata = self._manager.item_metadata(step)[item]
        found = {} if metadata is None else _shapes(metadata.tree)
        present = _present(like)
        wanted = _shapes(ocp.tree.serialize_tree(present, keep_empty_nodes=True))
        for name in sorted(found.keys() | wanted.keys()):
            there, here = found.get(name, "missing"), wanted.get(name, "missing")
            if there != here:
                where = self._manager.directory / str(step)
                if item == "memory" and len(there) == len(here) and there[0] != here[0]:
                    raise UserError(
                        f"checkpoint {where} has its memory on {there[0]} devices, and here are {here[0]}: go on with "
                        f"training on {there[0]} devices."
                    )
                raise UserError(
                    f"checkpoint {where} is of another architecture: {name} is {there} there and {here} here; use the "
                    "config that it was trained with, or another workdir."
                )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, present)
        restored = self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))
        return dataclasses.replace(like, **restored[item])

    def read(self, step: int, item: str) -> Any:
        """The item as nested dictionaries of numpy arrays, whatever devices it was written on."""
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        found = self._manager.item_metadata(step)[item].tree
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), found)
        restored = self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))
        return jax.tree.map(np.asarray, restored[item])

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
