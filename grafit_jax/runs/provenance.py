"""Where a result was made: stored beside every result, so that a number can be traced."""

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import jax

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
# What a result depends on, from the root of the repository: not results that were recorded in the meantime.
_CODE = (":/grafit_jax", ":/configs", ":/experiments/*.py")


def describe() -> dict[str, Any]:
    """Device, packages, Python and git revision (None outside of a checkout; "-dirty" where code was changed since)."""
    return {
        "device": f"{jax.device_count()} x {jax.local_devices()[0].device_kind}",
        "processor": _processor(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "revision": _revision(),
    }


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} cores of {models[0]}" if models else platform.processor()


def _revision() -> str | None:
    def git(*arguments):
        command = ["git", "-C", pathlib.Path(__file__).parent, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *_CODE)
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
