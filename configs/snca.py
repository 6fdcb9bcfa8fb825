"""SNCA by its own recipe: trained on coarse labels with the k-NN loss only, evaluated by k-NN and retrieval.

Paper: https://arxiv.org/abs/1808.04699 (SNCA) and its released code; docs/paper.md section 2.

Command:
    python experiments/train.py --config=configs/snca.py:dataset=cifar100 --workdir=runs/snca \\
        --config.data.data_dir=$HOME/tensorflow_datasets

Arguments:
    dataset= (default: cifar100)
        imagenet  ResNet-50 [ours] on the 127 coarse classes; SGD with lr 0.1, a tenth of it every 40 of 130 epochs,
                  batch 256, weight decay 1e-4; memory momentum 0.5, 0.8 from epoch 80 and 0.9 from epoch 120; crops
                  from 0.08, flips.
        cifar100  ResNet-18 with a 32 px stem; SGD with lr 0.1, a tenth of it every 50 of 200 epochs, batch 128, weight
                  decay 5e-4; memory momentum 0.5; crops from 0.2, flips, jitter always, grayscale.
        Both project linearly to 128 dimensions, as SNCA's code does, and start from a random memory [ours].
    method= (default: snca) or snca_plus, through Grafit's projector.
    seed= (default: 0)

Hours: not measured.

Expect: not run. No published row is confirmed for either data set.
"""

from grafit_jax import config_files
from grafit_jax.config_files import PHOTOS
from grafit_jax.errors import choose

_COMMON = {
    "model.embed_dim": 128,
    "optimizer.schedule": "step",
    "optimizer.step_factor": 0.1,
    "optimizer.warmup_epochs": 0.0,
    "optimizer.decay_all": True,  # as PyTorch's SGD does
    "memory.init": "random",
    "memory.momentum": 0.5,
}
DATASETS = {
    "imagenet": {
        **PHOTOS,
        "data.source": "tfds:imagenet2012",
        "model.trunk": "resnet50",
        "optimizer.learning_rate": 0.1,
        "optimizer.weight_decay": 1e-4,
        "views.crop_scale": (0.08, 1.0),
        "optimizer.boundary_epochs": (40, 80, 120),
        "memory.step_epochs": (80, 120),
        "memory.step_momentum": (0.8, 0.9),
        "train.epochs": 130,
        "train.batch_size": 256,
        "checkpoint.every_epochs": 1,
    },
    "cifar100": {
        "data.source": "tfds:cifar100",
        "views.jitter": (0.4, 0.4, 0.4, 0.4),
        "views.jitter_prob": 1.0,
        "views.grayscale_prob": 0.2,
        "optimizer.learning_rate": 0.2,  # 0.1 for 128 images per step
        "optimizer.weight_decay": 5e-4,
        "optimizer.boundary_epochs": (50, 100, 150),
        "train.epochs": 200,
        "train.batch_size": 128,
    },
}


def get_config(arg=None):
    c, arg = config_files.start(arg, _COMMON, dataset="cifar100", method="snca", seed=0)
    c.update_from_flattened_dict(DATASETS[choose(arg.dataset, "dataset", DATASETS)])
    config_files.beside_others(c, queue_size=8192)
    return c


def sweep():
    """Yields SNCA and SNCA+ by this recipe, on both data sets."""
    for dataset in DATASETS:
        for method in ("snca", "snca_plus"):
            yield {"dataset": dataset, "method": method}
