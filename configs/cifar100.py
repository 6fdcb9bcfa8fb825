"""CIFAR-100 in protocol "paper" (PAPER.md section 2): 20 coarse labels for training, 100 fine ones for evaluation.

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

_JITTER = (0.4, 0.4, 0.2, 0.1)  # BYOL's


def _paper(c):
    c.model.trunk = "resnet50"
    c.model.dtype = "bfloat16"
    c.clusterfit.num_clusters = 500
    c.views.jitter = _JITTER
    c.views.grayscale_prob = 0.2
    c.views.randaugment_ops = 2
    c.views.erase_prob = 0.25
    c.optimizer.weight_decay = 5e-4


def _r18(c):
    c.model.dtype = "bfloat16"
    c.clusterfit.num_clusters = 500
    c.views.num_views = 4
    c.views.jitter = _JITTER
    c.views.grayscale_prob = 0.2
    c.optimizer.learning_rate = 0.2
    c.optimizer.weight_decay = 5e-4
    c.optimizer.warmup_epochs = 5.0
    c.train.epochs = 200
    c.train.batch_size = 256
    c.eval.every_epochs = 20
    c.ema.base = 0.99


def _r18_short(c):
    _r18(c)
    c.views.num_views = 2
    c.train.epochs = 50
    c.eval.every_epochs = 10


def _cpu(c):
    c.model.trunk = "resnet8"
    c.model.stem = "patch2"
    c.model.head_hidden_dim = 256
    c.model.embed_dim = 128
    c.clusterfit.num_clusters = 100
    c.views.num_views = 2
    c.views.jitter = (0.4, 0.4, 0.4, 0.1)
    c.views.grayscale_prob = 0.2
    c.ema.base = 0.99
    c.optimizer.learning_rate = 0.2
    c.optimizer.weight_decay = 5e-4
    c.optimizer.warmup_epochs = 2.0
    c.train.epochs = 50
    c.train.batch_size = 128
    c.data.coarse_classes = (0, 1, 2, 3)
    c.checkpoint.every_epochs = 5


def _cpu_short(c):
    _cpu(c)
    c.train.epochs = 25


def _cpu_epochs(c):
    _cpu(c)
    c.train.epochs = 100
    c.eval.every_epochs = 10


def _cpu_half(c):
    _cpu(c)
    c.data.coarse_classes = tuple(range(10))
    c.clusterfit.num_clusters = 250
    c.train.epochs = 10


def _cpu_long(c):
    _cpu(c)
    c.data.coarse_classes = ()
    c.clusterfit.num_clusters = 500
    c.train.epochs = 20
    c.checkpoint.every_epochs = 1


PRESETS = {
    "paper": _paper,
    "r18": _r18,
    "r18_short": _r18_short,
    "cpu": _cpu,
    "cpu_short": _cpu_short,
    "cpu_epochs": _cpu_epochs,
    "cpu_half": _cpu_half,
    "cpu_long": _cpu_long,
}


def get_config(arg=None):
    c, arg = config_files.start(arg, PRESETS, method="grafit", preset="r18", seed=0, level="", init="")
    c.data.source = "tfds:cifar100"
    c.data.train_level = arg.level
    c.clusterfit.source = arg.init
    PRESETS[arg.preset](c)
    return c


def sweep():
    """Methods and seeds of the README's second table."""
    for method in ("baseline", "baseline_mlp", "snca_plus", "byol", "grafit_fc", "grafit"):
        for seed in range(2 if method in ("baseline_mlp", "grafit") else 1):
            yield {"method": method, "preset": "cpu", "seed": seed}
