"""The quickstart: scikit-learn's 1,797 digits, trained by whether a digit has a closed loop, judged by which it is.

    python experiments/train.py --config=configs/digits.py:method=grafit --workdir=runs/digits

About half a minute on 2 cores. Two coarse labels (loop: 0 6 8 9; none: 1 2 3 4 5 7), ten fine ones, half of the
images for training. Numbers to expect: the first table of the README. All methods share everything else. ClusterFit
starts from a finished baseline: `method=clusterfit,init=runs/baseline`; about 30 images in a cluster.
"""

from grafit_jax import config_files, methods
from grafit_jax.config_files import SMALL

_COMMON = {
    **SMALL,
    "model.stem": "cifar",
    "clusterfit.num_clusters": 30,
    "views.size": 8,
    "views.mean": (0.306,),
    "views.std": (0.377,),
    "views.crop_scale": (0.5, 1.0),
    "views.flip_prob": 0.0,  # a mirrored digit is another sign
    "ema.base": 0.99,
    "optimizer.learning_rate": 0.3,
    "train.epochs": 60,
    "train.batch_size": 128,
    "checkpoint.every_epochs": 20,
}


def get_config(arg=None):
    c, arg = config_files.start(arg, _COMMON, method="grafit", seed=0, init="")
    c.clusterfit.source = arg.init
    if methods.get(c.method).uses_queue:
        c.key_views.crop_scale, c.key_views.flip_prob = c.views.crop_scale, c.views.flip_prob
    return c


def sweep():
    """Methods and seeds of the README's first table."""
    for method in ("baseline", "baseline_mlp", "grafit"):
        for seed in range(3):
            yield {"method": method, "seed": seed}
