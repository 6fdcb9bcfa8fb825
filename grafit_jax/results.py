"""Results that a run wrote: sealed by the run, checked whenever they are read, merged when they are recorded.

A seal is a plain SHA-256: it tells of a file that was edited by hand, or damaged, and keeps nobody from forging one.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Of what a run leaves as its result. Goes up when the same keys mean something else.
SCHEMA = 1
# Where data lie on a disk is no part of a result.
_PLACES = ("data.data_dir", "data.categories")


def seal(run: Mapping[str, Any], config: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """The facts of a run (run.json) with the schema of its result, and the digest over the whole of it.

    Args:
      run: time, environment, data.
      config: dotted keys to values.
      metrics: as in metrics.json.
    """
    facts = {**run, "schema": SCHEMA}
    return facts | {"digest": digest(facts, config, metrics)}


def digest(run: Mapping[str, Any], config: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """64 hexadecimal digits of a SHA-256 over canonical JSON: sorted keys, no spaces; tuples and lists are the same."""
    whole = {
        "run": {key: value for key, value in run.items() if key != "digest"},
        "config": {key: value for key, value in config.items() if key not in _PLACES},
        "metrics": metrics,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
