"""Your own images: trained on coarse labels, evaluated by fine ones where there are any, by coarse ones otherwise.

Paper: https://arxiv.org/abs/2011.12982, methods only; docs/paper.md section 2. Guide: docs/own_images.md.

Command:
    python experiments/train.py --config=configs/own.py:dir=photos --workdir=runs/photos
    python experiments/search.py --workdir=runs/photos --query=new.jpg --out=near.png

Arguments:
    dir= (default: none, which means images) a folder with train/<coarse>/[<fine>/] and test/<coarse>/[<fine>/].
    csv= (default: none) a CSV of files and classes, in place of dir.
    method= (default: grafit) any method of docs/paper.md sections 2 and 3.
    preset= (default: gpu) both are ours, not the paper's.
        gpu  ResNet-50 at 224 px, T = 4, 100 epochs, batch 256, bfloat16; photos are streamed from their files.
        cpu  a small network at 32 px, 50 epochs; images are held in memory.
    seed= (default: 0)

Hours: preset=cpu 70 s for 1,764 photos on 2 CPU cores (docs/tutorial_photos.md); gpu not measured.

Expect: depends on your images; for those of docs/tutorial_photos.md, fine mAP 28.3 at the trunk with preset=cpu.
    Compare with `baseline` and `baseline_mlp` of `sweep()`, the controls.
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
        raise UserError(f"found dir={arg.dir} and csv={arg.csv}; expected one of them; remove the other.")
    c.data.source = f"csv:{arg.csv}" if arg.csv else f"folder:{arg.dir or 'images'}"
    return c


def sweep():
    """Yields Grafit, its control and plain cross-entropy."""
    for method in ("baseline", "baseline_mlp", "grafit"):
        yield {"method": method}
