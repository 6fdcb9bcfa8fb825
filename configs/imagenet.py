"""ImageNet-1k in protocol "paper" (docs/paper.md, 2, 5): trained on 127 coarse classes or all 1,000, judged at both.

    tfds build imagenet2012 --manual_dir=DIR      # once; DIR holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
    python experiments/train.py --config=configs/imagenet.py:method=grafit --workdir=runs/imagenet_grafit \\
        --config.data.data_dir=$HOME/tensorflow_datasets

`level` is the one that is trained on: coarse (127 classes, of which 65 hold a single fine class and the largest 218) or
fine. Presets:
  paper  ResNet-50 at 224 px, T = 4, 600 epochs, batch 1024: the recipe as far as it is known. By arithmetic, not
         measured: 751,000 steps of 134 TFLOP (four views forward and backward, and forward in the target network) are
         1.0e20 FLOP, 42 hours on a TPU v3-32 at a third of its peak.
  short  the same for 100 epochs: a sixth of that.
ClusterFit starts from a finished baseline: `method=clusterfit,init=runs/imagenet_baseline`; about 85 images in a
cluster [ours]. The paper's coarse -> fine cells are not confirmed; no number to expect. ResNet-50 with fine labels is
published at 79.6 top-1, by a linear classifier after fine-tuning.
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
    return c


def sweep():
    """Train levels x methods of the table coarse / fine x coarse / fine."""
    for level in ("coarse", "fine"):
        for method in ("baseline", "baseline_mlp", "snca_plus", "grafit_fc", "grafit"):
            yield {"level": level, "method": method}
