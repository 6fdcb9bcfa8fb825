"""Config keys that a user may leave open, as None; `presets.resolve` decides them when a run starts."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

# Prefix of a model on the Hugging Face hub, in place of a path.
HUB = "hf:"
# A commit of the hub, perhaps shortened.
_COMMIT = re.compile("[0-9a-f]{7,40}")


def leave_open(config: ml_collections.ConfigDict, keys: Iterable[str]) -> None:
    """Leaves keys open: None, until `presets.resolve` or the user gives them a value of the default's type."""
    for key in keys:
        group, _, name = key.rpartition(".")
        place = config[group] if group else config
        place[name] = ml_collections.FieldReference(None, field_type=place.get_type(name))


def completed(flat: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a flat config with the values of the flat config `stored` for what a run decides at its start.

    These are the open keys, and the commit of model.pretrained if the hub's model is the same. A branch or tag is the
    same as any commit, since only the hub knows its commit.
    """
    taken = {key: stored[key] for key, value in flat.items() if value is None and key in stored}
    key = "model.pretrained"
    if _is_pinned(flat.get(key), stored.get(key)):
        taken[key] = stored[key]
    return {**flat, **taken}


def _is_pinned(given: str | None, stored: str | None) -> bool:
    """Returns whether `stored` is the model of the hub `given`, at a commit that `given` may leave open."""
    (name, _, revision), (same, _, commit) = ((value or "").partition("@") for value in (given, stored))
    known = not _COMMIT.fullmatch(revision) or commit.startswith(revision)
    return name.startswith(HUB) and name == same and bool(commit) and known
