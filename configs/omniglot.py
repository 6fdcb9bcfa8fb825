"""Omniglot: trained by the alphabet of a drawn character, judged by which of 964 characters it is (docs/paper.md, 5).

    tfds build omniglot      # once
    python experiments/train.py --config=configs/omniglot.py:method=grafit --workdir=runs/omniglot_grafit \\
        --config.data.data_dir=$HOME/tensorflow_datasets

The alphabets of TFDS's two splits are disjoint. Variants:
  within  TFDS's training split alone, 30 alphabets of 964 characters: of the 20 drawings of a character 14 are for
          training and 6 for the test [ours].
  unseen  TFDS's own splits: retrieval among characters of 20 alphabets that training has not seen. k-NN votes of the
          training images cannot be right there.

Preset cpu: a small net at 28 px, 30 epochs of 105 steps, which take grafit 0.17 s of a core each: at most 10 minutes on
2 cores. Not tuned.
`level=fine` trains on the characters themselves.

ClusterFit starts from a finished baseline: `method=clusterfit,init=runs/omniglot_baseline`; about 45 images in a
cluster [ours]. The methods of protocol "maskcon" (configs/maskcon.py) see the same views, query and key alike, with the
same trunk and budget; theirs are sigma, heads without batch norm, a constant key momentum, and a queue of a seventh of
the images [ours].
"""

from grafit_jax import config_files, methods
from grafit_jax.config_files import SMALL
from grafit_jax.errors import choose

_MASKCON = {"model.head_batch_norm": False, "loss.temperature": 0.1, "queue.size": 2048, "ema.final": 0.99}
PRESETS = {
    "cpu": {
        **SMALL,
        "data.source": "tfds:omniglot",
        "data.image_size": 28,
        "views.size": 28,
        "views.mean": (0.922, 0.922, 0.922),
        "views.std": (0.215, 0.215, 0.215),
        "views.crop_scale": (0.5, 1.0),
        "views.flip_prob": 0.0,  # a mirrored character is another one
        "ema.base": 0.99,
        "optimizer.weight_decay": 5e-4,
        "train.epochs": 30,
        "train.batch_size": 128,
        "checkpoint.every_epochs": 5,
    }
}


def get_config(arg=None):
    c, arg = config_files.start(
        arg, {}, PRESETS, method="grafit", preset="cpu", variant="within", level="coarse", seed=0, init=""
    )
    c.data.variant = choose(arg.variant, "variant", ("within", "unseen"))
    c.data.train_level = choose(arg.level, "level", ("coarse", "fine"))
    method = methods.get(arg.method)
    if method.uses_clusters:
        c.clusterfit.source = arg.init
        c.clusterfit.num_clusters = 300
    if method.protocol == "maskcon":
        c.update_from_flattened_dict(_MASKCON)
        c.key_views.crop_scale, c.key_views.flip_prob = c.views.crop_scale, c.views.flip_prob
    return c


def sweep():
    """Methods of the table alphabets -> characters."""
    for method in ("baseline", "baseline_mlp", "snca_plus", "grafit"):
        yield {"method": method}
