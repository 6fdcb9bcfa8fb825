"""scikit-learn's digits: trained on whether a digit has a closed loop, evaluated by which of the ten digits it is.

Paper: https://arxiv.org/abs/2011.12982, methods only, on another data set [ours]; docs/paper.md section 2.

Command:
    python experiments/train.py --config=configs/digits.py:method=grafit --workdir=runs/digits
    # ClusterFit starts from a finished baseline:
    python experiments/train.py --config=configs/digits.py:method=clusterfit,init=runs/baseline \\
        --workdir=runs/clusterfit

Arguments:
    method= (default: grafit) any method of docs/paper.md sections 2 and 3.
    seed= (default: 0)
    init= (default: none) for ClusterFit, the workdir of the baseline to cluster: about 30 images per cluster [ours].

Hours: training only, 11 s grafit and 4 s baseline on 2 CPU cores (`train_seconds`,
    experiments/results/quickstart.jsonl).

Expect: fine mAP at the trunk, in percent, three seeds (experiments/results/quickstart.jsonl).
    73.4 ± 1.2 grafit, 65.1 ± 1.5 baseline_mlp, 55.1 ± 1.3 baseline
    The coarse labels are loop (0 6 8 9) and none (1 2 3 4 5 7); half of the 1,797 images are for training.
"""

from grafit_jax import config_files
from grafit_jax.config_files import SMALL

_COMMON = {
    **SMALL,
    "model.stem": "cifar",
    "clusterfit.num_clusters": 30,
    "views.size": 8,
    "views.mean": (0.306,),
    "views.std": (0.377,),
    "views.crop_scale": (0.5, 1.0),
    "views.flip_prob": 0.0,  # a mirrored digit is a different symbol
    "ema.base": 0.99,
    "optimizer.learning_rate": 0.3,
    "train.epochs": 60,
    "train.batch_size": 128,
    "checkpoint.every_epochs": 20,
}


def get_config(arg=None):
    c, arg = config_files.start(arg, _COMMON, method="grafit", seed=0, init="")
    c.clusterfit.source = arg.init
    config_files.beside_others(c, queue_size=512)
    return c


def sweep():
    """Yields the methods and seeds of table `quickstart`, without raw pixels."""
    for method in ("baseline", "baseline_mlp", "grafit"):
        for seed in range(3):
            yield {"method": method, "seed": seed}
