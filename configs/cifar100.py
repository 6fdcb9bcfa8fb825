"""CIFAR-100 in protocol "paper" (docs/paper.md section 2): 20 coarse labels for training, 100 fine ones for evaluation.

    python experiments/train.py --config=configs/cifar100.py:method=grafit,preset=cpu --workdir=runs/grafit \\
        --config.data.data_dir=$HOME/tensorflow_datasets

Presets:
  paper      ResNet-50, 32 px stem, T = 8, 600 epochs, batch 1024: the paper's recipe as far as it is known. The paper's
             cells of coarse -> fine tables are not confirmed; no number to expect.
  r18        ResNet-18, T = 4, 200 epochs, batch 256, one accelerator.
  r18_short  the same for 50 epochs with T = 2, evaluated every 10 epochs: minutes on one GPU; table `cifar100_gpu`.
  cpu        a small net on the 10,000 images of coarse classes 0-3, 50 epochs: at most 25 minutes on 2 cores.
             Numbers to expect: the second table of the README.
  cpu_short  half its epochs: at most 12 minutes on 2 cores.
  cpu_epochs twice its epochs, evaluated every 10: how what is learned changes with the length of training.
  cpu_half   the same net on the 25,000 images of coarse classes 0-9, 10 epochs: trunks for configs/transfer.py, whose
             preset cpu has the other classes.
  cpu_long   the same net on all 50,000 images, 20 epochs: at most 75 minutes on 2 cores.

`level` is the level of labels that is trained on: coarse (20 classes) or fine (100). Every run is judged at both; table
`cifar100_levels` has train level x test level.

ClusterFit starts from a finished baseline of the same preset: `method=clusterfit,init=runs/baseline`; about 100 images
in a cluster [ours]. SNCA with its own recipe: configs/snca.py.
"""

from grafit_jax import config_files
from grafit_jax.config_files import SMALL

_COMMON = {
    "data.source": "tfds:cifar100",
    "clusterfit.num_clusters": 500,
    "views.jitter": (0.4, 0.4, 0.2, 0.1),  # BYOL's
    "views.grayscale_prob": 0.2,
    "optimizer.weight_decay": 5e-4,
}
_R18 = {
    "model.dtype": "bfloat16",
    "views.num_views": 4,
    "optimizer.learning_rate": 0.2,
    "optimizer.warmup_epochs": 5.0,
    "train.epochs": 200,
    "train.batch_size": 256,
    "eval.every_epochs": 20,
    "ema.base": 0.99,
}
_CPU = {
    **SMALL,
    "clusterfit.num_clusters": 100,
    "views.jitter": (0.4, 0.4, 0.4, 0.1),
    "ema.base": 0.99,
    "train.epochs": 50,
    "train.batch_size": 128,
    "data.coarse_classes": (0, 1, 2, 3),
    "checkpoint.every_epochs": 5,
}
PRESETS = {
    "paper": {
        "model.trunk": "resnet50",
        "model.dtype": "bfloat16",
        "views.randaugment_ops": 2,
        "views.erase_prob": 0.25,
    },
    "r18": _R18,
    "r18_short": {**_R18, "views.num_views": 2, "train.epochs": 50, "eval.every_epochs": 10},
    "cpu": _CPU,
    "cpu_short": {**_CPU, "train.epochs": 25},
    "cpu_epochs": {**_CPU, "train.epochs": 100, "eval.every_epochs": 10},
    "cpu_half": {
        **_CPU,
        "data.coarse_classes": tuple(range(10)),
        "clusterfit.num_clusters": 250,
        "train.epochs": 10,
    },
    "cpu_long": {
        **_CPU,
        "data.coarse_classes": (),
        "clusterfit.num_clusters": 500,
        "train.epochs": 20,
        "checkpoint.every_epochs": 1,
    },
}


def get_config(arg=None):
    c, arg = config_files.start(arg, _COMMON, PRESETS, method="grafit", preset="r18", seed=0, level="", init="")
    c.data.train_level = arg.level
    c.clusterfit.source = arg.init
    return c


def sweep():
    """Methods and seeds of the README's second table."""
    for method in ("baseline", "baseline_mlp", "snca_plus", "byol", "grafit_fc", "grafit"):
        for seed in range(2 if method in ("baseline_mlp", "grafit") else 1):
            yield {"method": method, "preset": "cpu", "seed": seed}
