"""Seconds from the start of a process to the first embedding of a photo, with warm caches.

Our process calls `grafit_jax.load` on a workdir of a ResNet-50; the peer's reads torchvision's ResNet-50 from a .pth
file. Both embed one JPEG of 500 x 375 pixels at 224 pixels.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks import data, timing
from grafit_jax import config as config_lib
from grafit_jax import config_files, restore
from grafit_jax.data.records import Records, two_levels
from grafit_jax.runs import workdir
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.saved import description

_ROUNDS = 5
_OURS = """
import sys, grafit_jax
grafit_jax.load(sys.argv[1]).embed(sys.argv[2])
"""
_PEER = """
import sys, torch, torchvision, PIL.Image
net = torchvision.models.resnet50()
net.load_state_dict(torch.load(sys.argv[1], weights_only=True))
net.fc = torch.nn.Identity()
t = torchvision.transforms
seen = t.Compose([t.Resize(256), t.CenterCrop(224), t.ToTensor()])
with torch.inference_mode():
    net.eval()(seen(PIL.Image.open(sys.argv[2]).convert("RGB"))[None])
"""


def workdir_start() -> dict[str, Any]:
    """Measures the median of five processes, ours and the peer's in turns, after one of each that warms the caches."""
    with tempfile.TemporaryDirectory() as folder:
        path, image = pathlib.Path(folder, "run"), pathlib.Path(folder, "photo.jpg")
        data.photo(500, 375, seed=0).save(image, quality=90)
        megabytes = _write_run(path)
        calls = {"ours": _process(_OURS, path, image)}
        if importlib.util.find_spec("torchvision"):
            import torch
            import torchvision

            torch.save(torchvision.models.resnet50().state_dict(), path / "peer.pth")
            calls["peer"] = _process(_PEER, path / "peer.pth", image)
        times: dict[str, list[float]] = {who: [] for who in calls}
        for number in range(_ROUNDS + 1):
            for who, call in calls.items():
                seconds = timing.seconds(call)
                if number:  # the first one warms up
                    times[who].append(seconds)
    peer = median(times["peer"]) if "peer" in times else None
    work = f"start, load a ResNet-50 ({megabytes:.0f} MB checkpoint), embed a photo"
    return timing.line(work, median(times["ours"]), "PyTorch and torchvision", peer)


def _write_run(path: pathlib.Path) -> float:
    """Writes the workdir of an untrained ResNet-50 for photos of 224 pixels; returns its megabytes."""
    config = config_lib.default()
    config.update_from_flattened_dict(config_files.RESNET50_PHOTOS)
    config.model.dtype = "float32"  # the checkpoint's dtype; bfloat16 is slow on CPUs
    config.train.batch_size = 2
    config.eval.recall_at = (1,)
    side = config.data.image_size
    split = Records(
        np.zeros((4, side, side, 3), np.uint8), two_levels(None, np.array([0, 0, 1, 1], np.int32), (), "ab")
    )
    records = {"train": split, "test": split}
    config.data.stream = config.train.host_crops = False
    run = restore.load(config, path, records=records)
    workdir.claim(path, config)
    description.write(path, config, records)
    checkpoints = Checkpoints(path)
    checkpoints.save(0, restore.initial_state(run), None, {})
    checkpoints.close()
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6


def _process(code: str, *arguments: pathlib.Path) -> Callable[[], Any]:
    root = pathlib.Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command, environ = [sys.executable, "-c", code, *map(str, arguments)], os.environ | {"PYTHONPATH": path}
    return lambda: subprocess.run(command, check=True, env=environ, capture_output=True)


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {"resnet50_workdir": workdir_start}
