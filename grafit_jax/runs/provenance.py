"""Provenance, stored with checkpoints and results: device, packages and git revision."""

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import jax

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
# Paths that results depend on; recorded results are not among them.
_CODE = (":/grafit_jax", ":/configs", ":/experiments/*.py")


def describe() -> dict[str, Any]:
    """Returns device, packages, Python and git revision (None outside a checkout; "-dirty" with uncommitted code)."""
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
