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
from grafit_jax.errors import UserError


def _gpu(c):
    c.update_from_flattened_dict(config_files.PHOTOS)
    c.model.trunk = "resnet50"
    c.model.dtype = "bfloat16"
    c.views.num_views = 4
    c.train.epochs = 100
    c.train.batch_size = 256
    c.eval.batch_size = 256
    c.optimizer.warmup_epochs = 5.0


def _cpu(c):
    c.data.image_size = 40
    c.model.trunk = "resnet8"
    c.model.stem = "patch2"
    c.model.head_hidden_dim = 256
    c.model.embed_dim = 128
    c.views.num_views = 2
    c.views.size = 32
    c.optimizer.learning_rate = 0.2
    c.optimizer.warmup_epochs = 2.0
    c.train.epochs = 50
    c.train.batch_size = 64


PRESETS = {"gpu": _gpu, "cpu": _cpu}


def get_config(arg=None):
    c, arg = config_files.start(arg, PRESETS, dir="", csv="", method="grafit", preset="gpu", seed=0)
    if arg.dir and arg.csv:
        raise UserError(f"found dir={arg.dir} and csv={arg.csv}: want one of them.")
    c.data.source = f"csv:{arg.csv}" if arg.csv else f"folder:{arg.dir or 'images'}"
    c.update_from_flattened_dict(config_files.IMAGENET)
    c.views.jitter = (0.4, 0.4, 0.4, 0.1)
    c.views.grayscale_prob = 0.2
    c.ema.base = 0.99
    PRESETS[arg.preset](c)
    return c


def sweep():
    """Grafit beside its control and plain cross-entropy."""
    for method in ("baseline", "baseline_mlp", "grafit"):
        yield {"method": method}
