"""Seconds from the start of a process to the first step of a training, and to the first embedding of a photo."""

import functools
import importlib.util
import io
import json
import pathlib
import tempfile
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks import data, steps, timing
from grafit_jax import config as config_lib
from grafit_jax import config_files, restore
from grafit_jax.data.records import Records, two_levels
from grafit_jax.runs import workdir
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.saved import description

_ROUNDS = 5
_FIRST_STEP = """
import json, sys
from benchmarks import steps
from grafit_jax import parallel

parallel.use_compilation_cache()
config = steps.from_file(*sys.argv[1:3])
config.update_from_flattened_dict(json.loads(sys.argv[3]))
steps.Ours(config)
"""
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


def imported(module: str) -> dict[str, Any]:
    """Measures an import, which must not import TensorFlow."""
    code = f"import sys, time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    code += "; assert 'tensorflow' not in sys.modules"
    seconds = min(float(steps.process(code)) for _ in range(3))
    return timing.line(f"import {module}, without TensorFlow", seconds, goal_s=1.5)


def first_step_quickstart() -> dict[str, Any]:
    """Measures the first step of the quickstart: with a compilation cache, and with an empty one as its peer."""
    step = functools.partial(steps.process, _FIRST_STEP, "digits", "", "{}")
    with tempfile.TemporaryDirectory() as folder:
        cold, *warm = (timing.seconds(lambda: step(JAX_COMPILATION_CACHE_DIR=folder)) for _ in range(4))
    return timing.line("first step, the quickstart", min(warm), "an empty compilation cache", cold, goal_s=6.0)


def first_step_decoded(work: str, name: str, arg: str, **overrides: Any) -> dict[str, Any]:
    """Measures the first step of a config with decoded images of an earlier run, and with its peer, which decodes."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(folder, "compiled"))}
        each = [json.dumps(overrides | kept) for kept in ({"data.cache": str(pathlib.Path(folder, "decoded"))}, {})]
        calls = [functools.partial(steps.process, _FIRST_STEP, name, arg, options, **caches) for options in each]
        calls[0]()  # fills the caches
        kept, decoded = timing.best(calls, _ROUNDS, turn=1)
    return timing.line(f"first step, {work}, decoded images kept", kept, "decoded anew", decoded)


def first_step_photos(number: int = 5000, different: int = 50) -> dict[str, Any]:
    """Measures `first_step_decoded` of fine-tuning on a folder of photos."""
    with tempfile.TemporaryDirectory() as folder:
        photos = []
        for seed in range(different):
            data.photo(500, 375, seed).save(photo := io.BytesIO(), "JPEG", quality=90)
            photos.append(photo.getvalue())
        for i in range(number):
            of_class = pathlib.Path(folder, "test" if i % 10 == 0 else "train", f"class{i % 7}")
            of_class.mkdir(parents=True, exist_ok=True)
            (of_class / f"{i}.jpg").write_bytes(photos[i % different])
        return first_step_decoded(
            f"EfficientNet-Lite0 at 128 px, {number} photos of 500 x 375",
            "own",
            f"dir={folder},preset=scratch",
            **{
                "model.trunk": "tf_efficientnet_lite0",
                "model.stem": "imagenet",
                "data.image_size": 144,
                "views.size": 128,
            },
        )


def workdir_start() -> dict[str, Any]:
    """Measures the median of five processes, ours and the peer's in turns, after one of each that warms the caches."""
    with tempfile.TemporaryDirectory() as folder:
        path, image = pathlib.Path(folder, "run"), pathlib.Path(folder, "photo.jpg")
        data.photo(500, 375, seed=0).save(image, quality=90)
        megabytes = _write_run(path)
        calls = {"ours": functools.partial(steps.process, _OURS, path, image)}
        if importlib.util.find_spec("torchvision"):
            import torch
            import torchvision

            torch.save(torchvision.models.resnet50().state_dict(), path / "peer.pth")
            calls["peer"] = functools.partial(steps.process, _PEER, path / "peer.pth", image)
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


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "resnet50_workdir": workdir_start,
    "import": lambda: imported("grafit_jax.train"),
    "quickstart": first_step_quickstart,
    "cifar100": lambda: first_step_decoded("CIFAR-100 from TFDS", "cifar100", "preset=cpu"),
    "photos": first_step_photos,
}
