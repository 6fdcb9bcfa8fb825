"""Checkpoints: the only file that knows Orbax."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from grafit_jax.errors import UserError


class Checkpoints:
    """The checkpoints of one run, `workdir/checkpoints/<step>/`, written in the background.

    A checkpoint is a whole tree: parameters, target, batch statistics, optimiser, memory, RNG and step. The newest
    `keep` stay, and beside them the best one by the metric `map`, where evaluations were made.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1, read_only: bool = False):
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            # Named, so that a manager that has saved nothing yet can tell what a checkpoint holds.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(keep),
                        checkpoint_managers.BestN(
                            get_metric_fn=lambda metrics: metrics["map"], n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                read_only=read_only,
                create=not read_only,
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, metrics: dict[str, float] | None = None) -> None:
        """Starts to write `tree`; the values are copied before this returns, so that they may be donated."""
        self._manager.save(step, args=ocp.args.StandardSave(tree), metrics=metrics if metrics else None)

    def restore(self, step: int, like: Any) -> Any:
        """The tree of that step, with the structure, shapes and shardings of `like`.

        Raises:
          UserError: the checkpoint holds other arrays: it was written by another architecture.
        """
        found = _shapes(self._manager.item_metadata(step).tree)
        wanted = _shapes(ocp.tree.serialize_tree(like, keep_empty_nodes=True))
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"checkpoint {self._manager.directory / str(step)} is of another architecture: {name} is "
                    f"{found.get(name, 'missing')} there and {wanted.get(name, 'missing')} here; use the config that "
                    "it was trained with, or another workdir."
                )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Waits for what is being written; raises what went wrong there."""
        self._manager.wait_until_finished()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): tuple(leaf.shape)
        for path, leaf in leaves
    }
