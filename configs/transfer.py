"""Transfer: trained on fine labels, starting from a trained trunk, evaluated by the top-1 of a new linear classifier.

Paper: https://arxiv.org/abs/2011.12982, transfer learning; docs/paper.md sections 1 and 4.

Command:
    tfds build oxford_flowers102      # once
    python experiments/train.py --config=configs/transfer.py:dataset=flowers,init=runs/imagenet_grafit \\
        --workdir=runs/flowers --config.data.data_dir=$HOME/tensorflow_datasets
    python experiments/train.py --config=configs/transfer.py:preset=cpu,init=runs/grafit --workdir=runs/transfer_cpu \\
        --config.data.data_dir=$HOME/tensorflow_datasets

Arguments:
    dataset= (default: cifar100) with the command that prepares it:
        flowers   tfds build oxford_flowers102
        cars      python experiments/prepare.py --dataset=cars196 --manual_dir=DIR
        food101   tfds build food101
        cifar100  tfds build cifar100; images are resized to 224 px
        inat18    tfds build i_naturalist2018
        inat19    python experiments/prepare.py --dataset=inaturalist2019 --manual_dir=DIR
        imagenet  tfds build imagenet2012 --manual_dir=DIR
    preset= (default: full)
        full  a tenth of the learning rate of training from scratch, smaller in lower layers, label smoothing, CutMix
              [ours]: the paper's fine-tuning recipe is not known.
        cpu   cifar100 only: the 50 fine classes of coarse classes 10-19 at 32 px, for a small trunk trained on coarse
              classes 0-9 (configs/cifar100.py:preset=cpu_half).
    trunk= (default: resnet50) with preset=full, the network of `init`: resnet50 or regnet_y_8gf.
    size= (default: 0) the test resolution, 0 for the training resolution. The paper's larger one is not known; 384 is
        [ours].
    seed= (default: 0)
    init= (default: none) the workdir of any run, or a .pth or .safetensors file of torchvision's network; none means
        from scratch.

Hours: training only, 2 min for preset=cpu on 2 CPU cores (`train_seconds`, experiments/results/transfer.jsonl).
    Not measured for full.

Expect: top-1 of Grafit fine-tuned from ImageNet, in percent, [paper] unless marked (docs/paper.md section 4); not run.
              RegNetY-8GF, larger test images  RegNetY-8GF  ResNet-50
    flowers   99.1                             99.0         98.2
    cars      94.7                             94.0         92.5
    food101   93.7 [reported]                  -            -
    cifar100  -                                -            83.7 [reported]
    inat18    81.2                             76.8         69.8
    inat19    84.1 [reported]                  80.0         75.9
    imagenet  -                                -            79.6
    The 83.7 of cifar100 has two readings; the other is configs/cifar100.py:preset=paper,level=fine.
    preset=cpu  39.3 from baseline, 38.6 from grafit, 30.3 from scratch: measured, one seed
                (experiments/results/transfer.jsonl)
"""

from grafit_jax import config_files
from grafit_jax.config_files import IMAGENET, PHOTOS
from grafit_jax.errors import UserError, choose
from grafit_jax.views import augment

# The input format of the ImageNet trunk that is fine-tuned.
_AT_224 = {**IMAGENET, "model.stem": "imagenet", "views.size": 224, "mixing.cutmix": 1.0, "eval.batch_size": 100}
_PHOTOS = {**PHOTOS, **_AT_224}
DATASETS = {
    "flowers": {"data.source": "tfds:oxford_flowers102", "train.epochs": 300, **_PHOTOS},
    "cars": {"data.source": "tfds:cars196", "train.epochs": 300, **_PHOTOS},
    "food101": {"data.source": "tfds:food101", "train.epochs": 100, **_PHOTOS},
    "cifar100": {"data.source": "tfds:cifar100", "train.epochs": 100, **_AT_224},
    "inat18": {"data.source": "tfds:i_naturalist2018", "train.epochs": 100, **_PHOTOS},
    "inat19": {"data.source": "tfds:inaturalist2019", "train.epochs": 100, **_PHOTOS},
    "imagenet": {"data.source": "tfds:imagenet2012", "train.epochs": 30, **_PHOTOS},
}
_COMMON = {
    "method": "baseline",  # a linear classifier on the trunk's features
    "optimizer.learning_rate": 0.01,
    "optimizer.warmup_epochs": 5.0,
    "eval.layers": ("trunk",),
}
PRESETS = {
    "full": {
        "model.dtype": "bfloat16",
        "train.batch_size": 256,
        "views.randaugment_ops": 2,
        "optimizer.layer_decay": 0.9,
        "loss.label_smoothing": 0.1,
    },
    "cpu": {
        "data.source": "tfds:cifar100",
        "data.coarse_classes": tuple(range(10, 20)),
        "model.trunk": "resnet8",
        "model.stem": "patch2",
        "train.batch_size": 128,
        "train.epochs": 10,
        "optimizer.learning_rate": 0.1,
        "optimizer.warmup_epochs": 1.0,
    },
}


def get_config(arg=None):
    c, arg = config_files.start(
        arg, _COMMON, PRESETS, dataset="cifar100", preset="full", trunk="resnet50", size=0, seed=0, init=""
    )
    choose(arg.dataset, "dataset", DATASETS)
    if arg.preset == "cpu" and arg.dataset != "cifar100":
        raise UserError(f"found preset=cpu with dataset={arg.dataset}; expected dataset=cifar100; remove preset=cpu.")
    if arg.preset == "full":
        c.update_from_flattened_dict(DATASETS[arg.dataset])
        c.model.trunk = arg.trunk
    c.model.pretrained = arg.init
    c.eval.size = arg.size
    if c.data.image_size:
        c.data.image_size = max(c.data.image_size, augment.resize_for(arg.size))  # the test crop is cut from this size
    c.data.train_level = "species" if arg.dataset.startswith("inat") else "fine"  # the finest level
    return c


def sweep():
    """Yields every data set with both trunks."""
    for dataset in DATASETS:
        for trunk in ("resnet50", "regnet_y_8gf"):
            yield {"dataset": dataset, "trunk": trunk}
