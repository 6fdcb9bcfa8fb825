"""CIFAR-100: trained on 20 coarse labels (or 100 fine ones), evaluated by k-NN and retrieval at both levels.

Paper: https://arxiv.org/abs/2011.12982, CIFAR-100; docs/paper.md section 2, protocol "paper".

Command:
    python experiments/train.py --config=configs/cifar100.py:method=grafit,preset=cpu --workdir=runs/grafit \\
        --config.data.data_dir=$HOME/tensorflow_datasets
    # ClusterFit starts from a finished baseline of the same preset:
    python experiments/train.py --config=configs/cifar100.py:method=clusterfit,preset=cpu,init=runs/baseline \\
        --workdir=runs/clusterfit --config.data.data_dir=$HOME/tensorflow_datasets

Arguments:
    method= (default: grafit) a method of docs/paper.md section 2 or 3. Methods of protocol "maskcon" use the same views
        for query and key, the same trunk and epochs; their temperature, heads without batch norm, constant key momentum
        and queue (8,192 keys; 2,048 in the presets of few classes) differ [ours].
    preset= (default: r18)
        paper       ResNet-50 with a 32 px stem, T = 8, 600 epochs, batch 1024: the paper's recipe as far as known.
        r18         ResNet-18, T = 4, 200 epochs, batch 256, for one accelerator.
        r18_short   r18 with 50 epochs and T = 2, evaluated every 10 epochs.
        cpu         a small network on the 10,000 images of coarse classes 0-3, 50 epochs.
        cpu_short   cpu with 25 epochs.
        cpu_epochs  cpu with 100 epochs, evaluated every 10 epochs.
        cpu_half    the same network on the 25,000 images of coarse classes 0-9, 10 epochs: trunks for
                    configs/transfer.py, whose preset cpu uses the other ten coarse classes.
        cpu_long    the same network on all 50,000 images, 20 epochs.
    seed= (default: 0)
    level= (default: none) the label level to train on: coarse or fine. None means coarse.
    init= (default: none) for ClusterFit, the workdir of the baseline to cluster: about 100 images per cluster [ours].

Hours: training only, from `train_seconds` in experiments/results/; CPU runs shared two cores.
    r18_short, one H200             2 min baseline, 4 min grafit (cifar100_gpu.jsonl)
    cpu, 2 CPU cores                6 min baseline, 21 min grafit (cifar100_cpu.jsonl)
    cpu_short, 2 CPU cores          2 min baseline, 6 to 10 min grafit (cifar100_levels.jsonl, study_cifar100.jsonl)
    cpu_epochs, 2 CPU cores         9 min baseline, 27 min grafit (cifar100_epochs.jsonl)
    cpu_long, 2 CPU cores           15 min baseline_mlp, 39 min grafit (cifar100_cpu_long.jsonl)
    paper, r18, cpu_half            not measured

Expect: fine mAP at the trunk, in percent, from the same files (cpu_short: study_cifar100.jsonl).
    r18_short   24.0 grafit, 29.1 baseline (one seed)
    cpu         18.1 ± 0.5 grafit, 20.2 baseline, 18.1 ± 0.1 baseline_mlp
    cpu_short   15.6 ± 0.1 grafit, 17.2 ± 0.5 baseline, 15.8 ± 0.2 baseline_mlp
    cpu_epochs  20.9 grafit, 22.5 baseline, 20.6 baseline_mlp (one seed)
    cpu_long    7.5 grafit, 7.8 baseline_mlp (one seed)
    paper       not run. No coarse -> fine cell of the paper is confirmed. With level=fine, 83.7 top-1 [reported] is one
                of the two readings of that number; configs/transfer.py is the other (docs/paper.md section 4).
    r18         not run
    cpu_half    not recorded; its trunks are fine-tuned in table `transfer`
"""

from grafit_jax import config_files
from grafit_jax.config_files import SMALL

_COMMON = {
    "data.source": "tfds:cifar100",
    "clusterfit.num_clusters": 500,
    "views.jitter": (0.4, 0.4, 0.2, 0.1),  # BYOL's
    "views.grayscale_prob": 0.2,
    "optimizer.weight_decay": 5e-4,
    "eval.clusters": True,
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
    config_files.beside_others(c, queue_size=2048 if c.data.coarse_classes else 8192)
    return c


def sweep():
    """Yields the methods and seeds of table `cifar100_cpu`."""
    for method in ("baseline", "baseline_mlp", "snca_plus", "byol", "grafit_fc", "grafit"):
        for seed in range(2 if method in ("baseline_mlp", "grafit") else 1):
            yield {"method": method, "preset": "cpu", "seed": seed}
