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
    method= (default: none, which means baseline, or with init its method) any of docs/paper.md sections 2 and 3;
        docs/own_images.md says which to take when.
    preset= (default: none, which means auto, or with init its config) all are ours, not the paper's.
        auto     gpu if there is an accelerator, else laptop; chosen when the run starts.
        laptop   EfficientNet-Lite0 with ImageNet weights at 128 px, T = 2, 8 epochs, batch 64; images are held in
                 memory.
        gpu      ResNet-50 with ImageNet weights at 224 px, T = 4, 30 epochs, batch 256, bfloat16; photos are streamed
                 from their files.
        scratch  a small network from random weights at 32 px, T = 2, 50 epochs, batch 64; images are held in memory.
    pretrained= (default: none, which means those of the preset) other initial weights: hf:timm/NAME, a file of weights,
        a workdir or a saved model; they decide the trunk and the mean and standard deviation of its pixels.
    seed= (default: 0)

Hours: method=baseline with preset=laptop 9 min for 2,640 photos on 2 CPU cores (docs/tutorial_photos.md), with scratch
    1 min; gpu not measured.

Expect: depends on your images; for those of docs/tutorial_photos.md, fine mAP 56.2 at the trunk with method=baseline
    and preset=laptop, 23.9 with scratch.
    `sweep()` compares it with `grafit` and its control.
"""

from grafit_jax import config, config_files, methods, open_keys, presets
from grafit_jax.config_files import FINE_TUNING, IMAGENET, SMALL
from grafit_jax.errors import UserError, choose

PRESETS = {
    "auto": FINE_TUNING,
    "laptop": {**FINE_TUNING, **presets.PRESETS["laptop"]},
    "gpu": {**FINE_TUNING, **presets.PRESETS["gpu"]},
    "scratch": {
        "views.jitter": (0.4, 0.4, 0.4, 0.1),
        "views.grayscale_prob": 0.2,
        "ema.base": 0.99,
        **IMAGENET,
        **SMALL,
        "data.image_size": 40,
        "views.size": 32,
        "train.epochs": 50,
        "train.batch_size": 64,
    },
}


def get_config(arg=None):
    arg = config_files.parse_arg(arg, dir="", csv="", init="", method="", preset="", pretrained="", seed=0)
    for one, other in (("dir", "csv"), ("init", "preset"), ("init", "pretrained")):
        if arg[one] and arg[other]:
            raise UserError(f"found {one}={arg[one]} and {other}={arg[other]}; expected one of them; remove the other.")
    c = _continued(arg) if arg.init else _started(arg)
    if arg.dir or arg.csv:
        c.data.source = f"csv:{arg.csv}" if arg.csv else f"folder:{arg.dir}"
    same = arg.init and arg.method in ("", c.method)
    before, c.method, c.seed = c.method, arg.method or c.method, arg.seed
    if not same:
        default = config.flatten(config.default())
        c.update_from_flattened_dict({key: default[key] for key in methods.get(before).recipe})
        c.update_from_flattened_dict(methods.get(c.method).recipe)
        config_files.beside_others(c, queue_size=1024)
    if not methods.get(c.method).uses_memory:
        c.loss.levels, c.loss.level_weights = (), ()
    return c


def _started(arg):
    """Returns the config of a preset, which leaves open what devices or weights decide when the run starts."""
    preset, c = choose(arg.preset or "auto", "preset", PRESETS), config.default()
    if preset != "scratch":
        open_keys.leave_open(c, presets.OPEN)
    elif arg.pretrained:
        raise UserError(
            f"found preset=scratch and pretrained={arg.pretrained}; expected one of them; use preset=laptop."
        )
    # After 8 epochs from ImageNet weights no method is ahead of cross-entropy, the fastest one (table grocery).
    c.update_from_flattened_dict({**PRESETS[preset], "method": "baseline", "data.source": "folder:images"})
    c.model.pretrained = arg.pretrained or c.model.pretrained
    return c


def _continued(arg):
    """Returns the config of the model in `init`. With other data, keys that describe its own have their defaults."""
    import os

    from grafit_jax import saved

    c = saved.config_of(arg.init)
    c.model.init, c.model.pretrained = arg.init, ""
    c.data.cache = ""  # which may be a folder of another machine
    if arg.dir or arg.csv:
        own = ("coarse_classes", "data_dir", "holdout", "inat_categories_file", "test_split", "train_level", "variant")
        c.data.update({key: config.default().data[key] for key in own})
        c.loss.levels, c.loss.level_weights = (), ()
    elif c.data.source.startswith(("folder:", "csv:")) and not os.path.isabs(c.data.source.partition(":")[2]):
        raise UserError(f"init={arg.init}: found no place of its images ({c.data.source}); use dir=DIR or csv=FILE.")
    return c


def sweep():
    """Yields plain cross-entropy, Grafit and its control."""
    for method in ("baseline", "baseline_mlp", "grafit"):
        yield {"method": method}
