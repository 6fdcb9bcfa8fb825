"""Your own images: coarse labels for training, fine ones, where there are any, for evaluation (docs/own_images.md).

    python experiments/train.py --config=configs/own.py:dir=photos --workdir=runs/photos
    python experiments/search.py --workdir=runs/photos --query=new.jpg --out=near.png

with images in photos/train/<coarse>/ and photos/test/<coarse>/, or a folder deeper, in <coarse>/<fine>/. A CSV of files
and classes is taken by csv=FILE instead of dir=DIR.

Presets (both ours, not the paper's):
  gpu  ResNet-50 at 224 px, T = 4, 100 epochs, batch 256, bfloat16; photos stream from their files.
  cpu  a small net at 32 px, 50 epochs, images in memory: a few minutes for some thousand images on 2 cores.
"""

from grafit_jax import config_files
from grafit_jax.config_files import IMAGENET, PHOTOS, SMALL
from grafit_jax.errors import UserError

_COMMON = {**IMAGENET, "views.jitter": (0.4, 0.4, 0.4, 0.1), "views.grayscale_prob": 0.2, "ema.base": 0.99}
PRESETS = {
    "gpu": {
        **PHOTOS,
        "model.trunk": "resnet50",
        "model.dtype": "bfloat16",
        "views.num_views": 4,
        "train.epochs": 100,
        "train.batch_size": 256,
        "eval.batch_size": 256,
        "optimizer.warmup_epochs": 5.0,
    },
    "cpu": {**SMALL, "data.image_size": 40, "views.size": 32, "train.epochs": 50, "train.batch_size": 64},
}


def get_config(arg=None):
    c, arg = config_files.start(arg, _COMMON, PRESETS, dir="", csv="", method="grafit", preset="gpu", seed=0)
    if arg.dir and arg.csv:
        raise UserError(f"found dir={arg.dir} and csv={arg.csv}: want one of them.")
    c.data.source = f"csv:{arg.csv}" if arg.csv else f"folder:{arg.dir or 'images'}"
    return c


def sweep():
    """Grafit beside its control and plain cross-entropy."""
    for method in ("baseline", "baseline_mlp", "grafit"):
        yield {"method": method}
