"""Four data sets in protocol "maskcon": trained on coarse labels, evaluated by Recall@k among fine classes.

Paper: https://arxiv.org/abs/2303.12756 (MaskCon), Recall@k rows; docs/paper.md section 3. What it calls Grafit is
    `grafit_maskcon` here, not the method of https://arxiv.org/abs/2011.12982.

Command:
    python experiments/train.py --config=configs/maskcon.py:dataset=cifar100,method=grafit_maskcon \\
        --workdir=runs/maskcon --config.data.data_dir=$HOME/tensorflow_datasets \\
        --config.model.pretrained=hf:timm/resnet18.tv_in1k
    python experiments/train.py --config=configs/maskcon.py:dataset=cifar100,preset=cpu --workdir=runs/maskcon_cpu \\
        --config.data.data_dir=$HOME/tensorflow_datasets

Arguments:
    dataset= (default: cifar100)
        cifar100    CIFAR-100; as npz, without TensorFlow: --config.data.source=npz:DIR.
        cars        Stanford Cars; first: python experiments/prepare.py --dataset=cars196 --manual_dir=DIR.
        imagenet32  ImageNet at 32 px; first: tfds build imagenet_resized/32x32.
        sop         Stanford Online Products; first: tfds build stanford_online_products.
    method= (default: grafit_maskcon) selfcon, supcon, supce, grafit_maskcon, coins or maskcon; spread or ancor, later
        methods on the same step; or a method of protocol "paper", which runs with its own losses on the same data,
        trunk and number of epochs.
    preset= (default: full)
        full  ResNet-18 in bfloat16, 128 images per step, 200 epochs (imagenet32: 256 images, 100 epochs). The recipe is
              for one accelerator. Without model.pretrained the trunk starts from scratch.
        cpu   cifar100 only: a small network from scratch, 6 epochs.
    split= (default: split1) for sop, split1 or split2 of docs/paper.md section 3.
    seed= (default: 0)
    w= (default: 0.5) the weight of the supervised loss.
    t= (default: 0.05) the temperature of the soft labels of `maskcon`. w and t of the published `grafit_maskcon` rows
        are not known; `sweep()` covers both. Values that MaskCon's README gives are defaults too: `RELEASED`.

Hours: training only, from `train_seconds` in experiments/results/.
    cifar100, one H200            6 min grafit_maskcon from scratch (maskcon_cifar100.jsonl); 78,000 steps
    preset=cpu, 2 CPU cores       7 min grafit_maskcon, 13 min grafit (maskcon_cpu.jsonl)
    cars, imagenet32, sop         not measured; 12,600, 500,000 and 39,600 steps

Expect: R@1 / 2 / 5 / 10 at the trunk of `grafit_maskcon`, in percent.
    cifar100    60.57 / 71.13 / 82.32 / 89.21 [reported], pretrained; 50.3 / 61.5 / 74.4 / 83.1 measured from scratch
                with torchvision's AutoAugment (docs/maskcon.md)
    cars        42.3 / 54.79 / 71.1 / 81.74 [reported], pretrained; not run
    imagenet32  18.13 / 25.46 / 37.19 / 46.64 [reported], pretrained; not run
    sop         74.02 / 78.82 / 84.13 / 87.91 [reported], pretrained; its split is not known; not run
    preset=cpu  14.4 / 21.7 / 34.7 / 46.8 measured (experiments/results/maskcon_cpu.jsonl)
"""

from grafit_jax import config_files, methods
from grafit_jax.config_files import IMAGENET, SMALL
from grafit_jax.errors import UserError, choose

_AUTOAUGMENT = {"views.autoaugment": "maskcon"}  # of the query; the key is only cropped and flipped
_PHOTOS = {
    "data.image_size": 256,  # stored size of a photo, before crops of 224 px [ours]
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
# (w, t) of MaskCon's README, by data set and method; CoIns ignores t. The README gives none for CIFAR-100 and for the
# other methods.
RELEASED = {
    ("imagenet32", "coins"): (1.0, 0.05),
    ("sop", "maskcon"): (0.8, 0.1),
    ("cars", "maskcon"): (1.0, 0.1),
}


_COMMON = {
    "views.num_views": 2,  # for methods of protocol "paper": as many as a query and its key
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
        "optimizer.learning_rate": 0.04,  # 0.02 for 128 images per step
        "train.epochs": 200,
    },
    "cpu": {
        **SMALL,
        "model.head_hidden_dim": 128,
        # Chosen on a held-out tenth of the training images for grafit_maskcon and grafit, from scratch with few epochs,
        # among 0.04, 0.15, 0.5 and 1.0 (then 0.2 and 0.6).
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
        raise UserError(f"found preset=cpu with dataset={arg.dataset}; expected dataset=cifar100; remove preset=cpu.")
    c.update_from_flattened_dict(DATASETS[arg.dataset])
    c.loss.maskcon_weight = arg.w
    c.loss.maskcon_temperature = arg.t
    if methods.get(arg.method).protocol == "maskcon":
        c.model.head_batch_norm = False
        c.model.head_init = "pytorch"
        c.loss.temperature = config_files.temperature_of(arg.method)
    if arg.dataset == "sop":
        c.data.variant = arg.split
    return c


def sweep():
    """Yields w for the mixtures, and w and t for `maskcon`."""
    for w in (0.0, 0.2, 0.5, 0.8, 1.0):
        for method in ("grafit_maskcon", "coins"):
            yield {"method": method, "w": w}
        for t in (0.01, 0.05, 0.1, 0.5):
            yield {"method": "maskcon", "w": w, "t": t}
