"""Omniglot: trained on the alphabet of a drawn character, evaluated by which character it is.

Paper: https://arxiv.org/abs/2011.12982, methods only, on another data set [ours]; docs/paper.md sections 2, 3 and 5.

Command:
    tfds build omniglot      # once
    python experiments/train.py --config=configs/omniglot.py:method=grafit --workdir=runs/omniglot_grafit \\
        --config.data.data_dir=$HOME/tensorflow_datasets
    # ClusterFit starts from a finished baseline:
    python experiments/train.py --config=configs/omniglot.py:method=clusterfit,init=runs/omniglot_baseline \\
        --workdir=runs/omniglot_clusterfit --config.data.data_dir=$HOME/tensorflow_datasets

Arguments:
    method= (default: grafit) a method of docs/paper.md section 2 or 3. Methods of protocol "maskcon" use the same views
        for query and key, and the same trunk and epochs; their temperature, heads without batch norm, constant key
        momentum and queue of a seventh of the images differ [ours].
    variant= (default: within)
        within  TFDS's training split: 30 alphabets, 964 characters; of the 20 drawings of a character 14 are for
                training and 6 for the test [ours].
        unseen  TFDS's own splits: retrieval among characters of 20 alphabets that training has not seen. The votes of
                k-NN cannot be right there.
    level= (default: coarse) the label level to train on: coarse (alphabets) or fine (characters).
    seed= (default: 0)
    init= (default: none) for ClusterFit, the workdir of the baseline to cluster: about 45 images per cluster [ours].

Hours: training only, 7 to 13 min grafit and 2 min baseline on 2 CPU cores (`train_seconds`,
    experiments/results/study_omniglot.jsonl).

Expect: fine mAP at the trunk, in percent (experiments/results/study_omniglot.jsonl).
    54.4 ± 1.0 grafit, 56.7 ± 1.6 snca, 51.1 ± 1.0 baseline_mlp, 42.1 ± 1.3 baseline
    variant=unseen  not run
"""

from grafit_jax import config_files, methods
from grafit_jax.config_files import SMALL
from grafit_jax.errors import choose

# A small network at 28 px. Not tuned.
_COMMON = {
    **SMALL,
    "data.source": "tfds:omniglot",
    "data.image_size": 28,
    "views.size": 28,
    "views.mean": (0.922, 0.922, 0.922),
    "views.std": (0.215, 0.215, 0.215),
    "views.crop_scale": (0.5, 1.0),
    "views.flip_prob": 0.0,  # a mirrored character is a different one
    "ema.base": 0.99,
    "optimizer.weight_decay": 5e-4,
    "train.epochs": 30,
    "train.batch_size": 128,
    "checkpoint.every_epochs": 5,
    "eval.clusters": True,
}


def get_config(arg=None):
    c, arg = config_files.start(arg, _COMMON, method="grafit", variant="within", level="coarse", seed=0, init="")
    c.data.variant = choose(arg.variant, "variant", ("within", "unseen"))
    c.data.train_level = choose(arg.level, "level", ("coarse", "fine"))
    if methods.get(arg.method).uses_clusters:
        c.clusterfit.source = arg.init
        c.clusterfit.num_clusters = 300
    config_files.beside_others(c, queue_size=2048)
    return c


def sweep():
    """Yields four methods of table `omniglot`."""
    for method in ("baseline", "baseline_mlp", "snca_plus", "grafit"):
        yield {"method": method}
