"""Retrieval rows of protocol "maskcon" (docs/paper.md, 3): CIFAR-100, Cars, ImageNet32, Stanford Online Products.

    python experiments/train.py --config=configs/maskcon.py:dataset=cifar100,method=grafit_maskcon \\
        --workdir=runs/maskcon --config.data.data_dir=$HOME/tensorflow_datasets \\
        --config.model.pretrained=resnet18.safetensors

Methods: selfcon, supcon, supce, grafit_maskcon, coins, maskcon; grafit, snca_plus and the other methods of protocol
"paper" run on the same data, trunk and budget, with their own losses. The rows printed under Grafit's name are of
`grafit_maskcon`, which is not the paper's Grafit, and their trunk started from torchvision's ImageNet weights; without
`model.pretrained` it starts from scratch.

Row to reach (R@1 / 2 / 5 / 10, [seed]) and expected time on one H100-class GPU and on a TPU v3-8:

  dataset     row to reach                   steps   GPU      TPU v3-8
  cifar100    60.57 / 71.13 / 82.32 / 89.21  78,000  10 min   10 min
  cars        42.3 / 54.79 / 71.1 / 81.74    12,600  25 min   20 min
  imagenet32  18.13 / 25.46 / 37.19 / 46.64  500,000 2 hours  2 hours
  sop         74.02 / 78.82 / 84.13 / 87.91  39,600  80 min   60 min  (which split the row is of is not known)

The times are arithmetic: 78,000 steps in 600 s are 130 a second, of 0.50 TFLOP each: 65 TFLOP/s, 7 % of an H100's
bfloat16 peak. Measured on one GPU, for CIFAR-100: docs/performance.md and docs/maskcon.md. The recipe is made for one
accelerator: 128 images a step (ImageNet32: 256, for 100 epochs) leave 16 for each of 8 cores. Runs go on where they
were stopped, so that one can be split over several short sessions.

CIFAR-100 needs no TensorFlow as npz: --config.data.source=npz:DIR. Cars: `experiments/prepare.py --dataset=cars196`.

Preset cpu (cifar100 alone): a small net from scratch, 6 epochs, at most 12 minutes on 2 cores; the table
`maskcon_cpu` of the README. w and t of the published rows of `grafit_maskcon` are not known: `sweep()`. Where MaskCon's
README gives them for another method they are that method's defaults here: `RELEASED`.
"""

from grafit_jax import config_files, methods
from grafit_jax.config_files import IMAGENET, SMALL
from grafit_jax.errors import UserError, choose

_AUTOAUGMENT = {"views.autoaugment": "maskcon"}  # on the query; the key is cropped and flipped alone
_PHOTOS = {
    "data.image_size": 256,  # what is kept of a photo, before crops of 224 [ours]
    "model.stem": "imagenet",
    "views.size": 224,
    "views.perspective": 0.5,
    "key_views.perspective": 0.5,
    "eval.batch_size": 100,
}
DATASETS = {
    "cifar100": {"data.source": "tfds:cifar100", **_AUTOAUGMENT},
    "imagenet32": {
        "data.source": "tfds:imagenet_resized/32x32",
        **IMAGENET,
        **_AUTOAUGMENT,
        "queue.size": 16384,
        "train.epochs": 100,
        "train.batch_size": 256,
        "optimizer.learning_rate": 0.02,
    },
    "cars": {
        "data.source": "tfds:cars196",
        **IMAGENET,
        **_PHOTOS,
        "views.jitter": (0.4, 0.4, 0.4, 0.1),
        "views.grayscale_prob": 0.2,
        "views.blur": (0.1, 2.0),
    },
    "sop": {"data.source": "tfds:stanford_online_products", **IMAGENET, **_PHOTOS},
}
# (w, t) of MaskCon's README, by data set and the method that they are given with; t is nothing to CoIns. Of other
# methods, and of CIFAR-100, none is given.
RELEASED = {
    ("imagenet32", "coins"): (1.0, 0.05),
    ("sop", "maskcon"): (0.8, 0.1),
    ("cars", "maskcon"): (1.0, 0.1),
}


_COMMON = {
    "views.num_views": 2,  # of the paper's methods: as many as a query and its key
    "ema.base": 0.99,
    "ema.final": 0.99,
    "optimizer.nesterov": False,
    "optimizer.weight_decay": 5e-4,
    "optimizer.decay_all": True,
    "optimizer.warmup_epochs": 5.0,
    "train.batch_size": 128,
    "eval.recall_at": (1, 2, 5, 10, 50, 100),
    "eval.every_epochs": 10,
}
PRESETS = {
    "full": {
        "model.head_hidden_dim": 512,
        "model.dtype": "bfloat16",
        "optimizer.learning_rate": 0.04,  # 0.02 for 128 images a step
        "train.epochs": 200,
    },
    "cpu": {
        **SMALL,
        "model.head_hidden_dim": 128,
        # Chosen for a net from scratch and few epochs, for grafit_maskcon and grafit alike, on a tenth of the training
        # images: of 0.04, 0.15, 0.5 and 1.0 (0.2 and 0.6).
        "optimizer.learning_rate": 0.6,
        "optimizer.warmup_epochs": 1.0,
        "train.epochs": 6,
    },
}


def get_config(arg=None):
    defaults = {
        "dataset": "cifar100", "method": "grafit_maskcon", "preset": "full", "split": "split1", "seed": 0,
        "w": 0.5, "t": 0.05,
    }  # fmt: skip
    asked = config_files.parse_arg(arg, **defaults)
    if (asked.dataset, asked.method) in RELEASED and (asked.dataset, asked.split) != ("sop", "split2"):
        defaults["w"], defaults["t"] = RELEASED[asked.dataset, asked.method]
    c, arg = config_files.start(arg, _COMMON, PRESETS, **defaults)
    choose(arg.dataset, "dataset", DATASETS)
    if arg.preset == "cpu" and arg.dataset != "cifar100":
        raise UserError(f"found preset=cpu with dataset={arg.dataset}: it is for dataset=cifar100 alone, leave it out.")
    c.update_from_flattened_dict(DATASETS[arg.dataset])
    c.loss.maskcon_weight = arg.w
    c.loss.maskcon_temperature = arg.t
    if methods.get(arg.method).protocol == "maskcon":
        c.model.head_batch_norm = False
        c.model.head_init = "pytorch"
        c.loss.temperature = 0.1
    if arg.dataset == "sop":
        c.data.variant = arg.split
    return c


def sweep():
    """w for the mixtures, and w and t for maskcon."""
    for w in (0.0, 0.2, 0.5, 0.8, 1.0):
        for method in ("grafit_maskcon", "coins"):
            yield {"method": method, "w": w}
        for t in (0.01, 0.05, 0.1, 0.5):
            yield {"method": "maskcon", "w": w, "t": t}
