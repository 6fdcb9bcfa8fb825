"""ImageNet-1k: trained on 127 coarse classes or all 1,000, evaluated by k-NN and retrieval at both levels.

Paper: https://arxiv.org/abs/2011.12982, ImageNet-1k; docs/paper.md sections 2 and 5, protocol "paper".

Command:
    tfds build imagenet2012 --manual_dir=DIR      # once; DIR holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python experiments/train.py --config=configs/imagenet.py:method=grafit --workdir=runs/imagenet_grafit \\
        --config.data.data_dir=$HOME/tensorflow_datasets
    # ClusterFit starts from a finished baseline:
    python experiments/train.py --config=configs/imagenet.py:method=clusterfit,init=runs/imagenet_baseline \\
        --workdir=runs/imagenet_clusterfit --config.data.data_dir=$HOME/tensorflow_datasets

Arguments:
    method= (default: grafit) a method of docs/paper.md section 2.
    level= (default: coarse) the label level to train on: coarse (127 classes; 65 of them hold a single fine class, the
        largest holds 218) or fine.
    preset= (default: paper)
        paper  ResNet-50 at 224 px, T = 4, 600 epochs, batch 1024: the paper's recipe as far as known.
        short  paper with 100 epochs.
    seed= (default: 0)
    init= (default: none) for ClusterFit, the workdir of the baseline to cluster: about 85 images per cluster [ours].

Hours: not measured. Estimated as in docs/pods.md, at a third of the peak: 751,000 steps of 134 TFLOP (four views
    forward and backward, and forward in the target network) take 43 hours on a TPU v3-32 with preset=paper; short takes
    a sixth of that.

Expect: not run. No coarse -> fine cell of the paper is confirmed. ResNet-50 trained on fine labels reaches 79.6 top-1
    [paper] (docs/paper.md section 4).
"""

from grafit_jax import config_files
from grafit_jax.config_files import RESNET50_PHOTOS
from grafit_jax.errors import choose

_COMMON = {**RESNET50_PHOTOS, "data.source": "tfds:imagenet2012", "clusterfit.num_clusters": 15_000}
PRESETS = {"paper": {"train.epochs": 600}, "short": {"train.epochs": 100}}


def get_config(arg=None):
    c, arg = config_files.start(arg, _COMMON, PRESETS, method="grafit", level="coarse", preset="paper", seed=0, init="")
    c.data.train_level = choose(arg.level, "level", ("coarse", "fine"))
    c.clusterfit.source = arg.init
    config_files.beside_others(c, queue_size=8192)
    return c


def sweep():
    """Yields the train levels and methods of the table train level x test level."""
    for level in ("coarse", "fine"):
        for method in ("baseline", "baseline_mlp", "snca_plus", "grafit_fc", "grafit"):
            yield {"level": level, "method": method}
