"""Your own images: trained on coarse labels, evaluated by fine ones where there are any, by coarse ones otherwise.

Paper: https://arxiv.org/abs/2011.12982, methods only; docs/paper.md section 2. Guide: docs/own_images.md.

Command:
    python experiments/train.py --config=configs/own.py:dir=photos --workdir=runs/photos
    python experiments/embed.py --workdir=runs/photos --images=photos --out=photos.parquet
    python experiments/search.py --gallery=photos.parquet --query=new.jpg --out=near.png

Arguments:
    dir= (default: none, which means images) a folder with train/<coarse>/[<fine>/] and test/<coarse>/[<fine>/].
    csv= (default: none) a CSV of files and classes, in place of dir.
    init= (default: none) a run, a saved model or hf:owner/name whose config and weights to continue with, on its own
        images or those of dir or csv; see docs/own_images.md.
    method= (default: none, which means grafit, or with init its method) any of docs/paper.md sections 2 and 3.
    preset= (default: none, which means gpu, or with init its config) both are ours, not the paper's.
        gpu  ResNet-50 at 224 px, T = 4, 100 epochs, batch 256, bfloat16; photos are streamed from their files.
        cpu  a small network at 32 px, 50 epochs; images are held in memory.
    seed= (default: 0)

Hours: preset=cpu 70 s for 1,764 photos on 2 CPU cores (docs/tutorial_photos.md); gpu not measured.

Expect: depends on your images; for those of docs/tutorial_photos.md, fine mAP 28.3 at the trunk with preset=cpu.
    Compare with `baseline` and `baseline_mlp` of `sweep()`, the controls.
"""

from grafit_jax import config, config_files
from grafit_jax.config_files import IMAGENET, PHOTOS, SMALL
from grafit_jax.errors import UserError, choose

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
    arg = config_files.parse_arg(arg, dir="", csv="", init="", method="", preset="", seed=0)
    for one, other in (("dir", "csv"), ("init", "preset")):
        if arg[one] and arg[other]:
            raise UserError(f"found {one}={arg[one]} and {other}={arg[other]}; expected one of them; remove the other.")
    if arg.init:
        c = _continued(arg)
    else:
        c = config.default()
        c.update_from_flattened_dict(_COMMON | PRESETS[choose(arg.preset or "gpu", "preset", PRESETS)])
        c.data.source = "folder:images"
    if arg.dir or arg.csv:
        c.data.source = f"csv:{arg.csv}" if arg.csv else f"folder:{arg.dir}"
    c.method, c.seed = arg.method or c.method, arg.seed
    return c


def _continued(arg):
    """Returns the config of the model in `init`. With other data, keys that describe its own have their defaults."""
    import os

    from grafit_jax import saved

    c = saved.config_of(arg.init)
    c.model.init, c.model.pretrained = arg.init, ""
    if arg.dir or arg.csv:
        own = ("coarse_classes", "data_dir", "holdout", "inat_categories_file", "test_split", "train_level", "variant")
        c.data.update({key: config.default().data[key] for key in own})
    elif c.data.source.startswith(("folder:", "csv:")) and not os.path.isabs(c.data.source.partition(":")[2]):
        raise UserError(f"init={arg.init}: found no place of its images ({c.data.source}); use dir=DIR or csv=FILE.")
    return c


def sweep():
    """Yields Grafit, its control and plain cross-entropy."""
    for method in ("baseline", "baseline_mlp", "grafit"):
        yield {"method": method}
