"""A config file with a sweep of short runs, and commands that stand in for trainings and take milliseconds."""

import json
import sys

FILE = """
from grafit_jax import config_files
from grafit_jax import config as config_lib


def get_config(arg=None):
    arg = config_files.parse_arg(arg, method="baseline", seed=0, source="digits", w=0.5)
    c = config_lib.default()
    c.update_from_flattened_dict({
        "method": arg.method, "seed": arg.seed, "data.source": arg.source, "loss.maskcon_weight": arg.w,
        "model.trunk": "resnet8", "model.stem": "patch2", "model.head_hidden_dim": 32, "model.embed_dim": 16,
        "views.size": 8, "views.num_views": 2, "views.mean": (0.3,), "views.std": (0.4,), "train.epochs": 1,
        "train.batch_size": 32, "optimizer.warmup_epochs": 0.0, "eval.layers": ("trunk",),
    })
    return c


def sweep():
    return POINTS
"""


def write_file(path, points):
    """Writes a config file whose sweep has these points; returns its path."""
    file = path / "small.py"
    file.write_text(FILE + f"\n\nPOINTS = {points!r}\n")
    return str(file)


def stub(code):
    """Returns a command that runs `code` with only the standard library, for a fast start; `run` is the workdir."""
    return lambda run: [
        sys.executable, "-IS", "-c",
        f"import json, os, pathlib, signal, sys\nrun = pathlib.Path(sys.argv[1])\n{code}", str(run),
    ]  # fmt: skip


def write_metrics(**metrics):
    """Returns the code of a run that is complete at once."""
    return f"(run / 'metrics.json').write_text({json.dumps(metrics)!r})"
