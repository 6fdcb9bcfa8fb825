"""Grocery Store Dataset, photos of groceries: trained on 43 coarse classes, evaluated by 81 fine ones.

Paper: https://arxiv.org/abs/2011.12982, methods only, on another data set [ours]; docs/paper.md sections 2, 3 and 5.

Command:
    git clone https://github.com/marcusklasson/GroceryStoreDataset      # once
    python experiments/prepare.py --dataset=grocery --manual_dir=GroceryStoreDataset
    python experiments/train.py --config=configs/grocery.py:method=baseline --workdir=runs/grocery_baseline

Arguments:
    method= (default: grafit) a method of docs/paper.md section 2 or 3, or frozen: the pretrained trunk with nothing
        trained. Methods of protocol "maskcon" use the same views for query and key, the same trunk and epochs.
    preset= (default: lite0)
        lite0       EfficientNet-Lite0 with ImageNet weights at 128 px, 8 epochs, T = 2, for CPUs.
        lite0_long  the same with 40 epochs, evaluated every 4.
    split= (default: test) the photos to evaluate: test, or validation for the choice of settings.
    seed= (default: 0)
    init= (default: none, which means hf:timm/tf_efficientnet_lite0.in1k) the weights of the trunk: a name on the hub or
        a file.

Hours: preset=lite0 on 2 CPU cores: baseline, baseline_mlp and snca_plus 9 to 11 min, maskcon 15 min, grafit and
    grafit_fc at most 30 min; lite0_long: baseline at most 78 min, grafit 193 min, half of it on one core.

Expect: fine mAP and k-NN in percent at the trunk, preset=lite0: frozen 40.2 and 56.9; of three seeds, baseline 56.2 and
    71.0, baseline_mlp 55.2 and 70.1, snca_plus 53.8 and 69.1, grafit_fc 54.3 and 69.8, grafit 54.7 and 69.8, maskcon
    42.9 and 61.8; preset=lite0_long, of one seed, baseline 58.8 and 71.4, grafit 60.6 and 71.8.
"""

from grafit_jax import config_files, pretrained
from grafit_jax.config_files import FINE_TUNING
from grafit_jax.errors import choose

_LITE0 = {
    "data.source": "tfds:grocery",
    "data.image_size": 176,
    **FINE_TUNING,
    "model.trunk": "tf_efficientnet_lite0",
    "model.stem": "imagenet",
    "model.head_hidden_dim": 1024,
    "model.embed_dim": 128,
    "views.size": 128,
    "views.mean": (0.5, 0.5, 0.5),
    "views.std": (0.5, 0.5, 0.5),
    "views.num_views": 2,
    "train.epochs": 8,
    "train.batch_size": 64,
    "eval.batch_size": 100,
    "checkpoint.keep": 1,
}
PRESETS = {"lite0": _LITE0, "lite0_long": {**_LITE0, "train.epochs": 40, "eval.every_epochs": 4}}


def get_config(arg=None):
    c, arg = config_files.start(arg, {}, PRESETS, method="grafit", preset="lite0", split="test", seed=0, init="")
    c.data.variant = choose(arg.split, "split", ("test", "validation"))
    c.model.pretrained = arg.init or pretrained.KNOWN[c.model.trunk]
    config_files.beside_others(c, queue_size=1024)
    return c


def sweep():
    """Yields the methods of table `grocery`."""
    for method in ("frozen", "baseline", "baseline_mlp", "snca_plus", "grafit_fc", "grafit", "maskcon"):
        yield {"method": method}
