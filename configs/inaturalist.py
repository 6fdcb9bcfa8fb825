"""iNaturalist 2018 and 2019: trained on one level of the taxonomy, evaluated by k-NN and retrieval at all seven.

Paper: https://arxiv.org/abs/2011.12982, iNaturalist; docs/paper.md sections 2 and 5, protocol "paper".

Command:
    tfds build i_naturalist2018                   # once, for year=2018; see Arguments for categories.json
    python experiments/prepare.py --dataset=inaturalist2019 --manual_dir=FOLDER      # once, for year=2019
    python experiments/train.py --config=configs/inaturalist.py:year=2019,level=genus,method=grafit \\
        --workdir=runs/inat_genus --config.data.data_dir=$HOME/tensorflow_datasets
    # ClusterFit starts from a finished baseline:
    python experiments/train.py --config=configs/inaturalist.py:year=2019,method=clusterfit,init=runs/inat_baseline \\
        --workdir=runs/inat_clusterfit --config.data.data_dir=$HOME/tensorflow_datasets

Arguments:
    year= (default: 2018)
        2018  needs the competition's categories.json (with real names) in i_naturalist2018/ of TFDS's data directory,
              or --config.data.inat_categories_file=FILE. TFDS itself has species only.
        2019  FOLDER holds train_val2019/, train2019.json, val2019.json and categories.json (with real names).
    level= (default: genus) the level to train on: kingdom, phylum, class, order, family, genus or species.
    method= (default: grafit) a method of docs/paper.md section 2.
    preset= (default: paper)
        paper  ResNet-50 at 224 px, T = 4, 600 epochs, batch 1024: the paper's recipe as far as known.
        short  paper with 100 epochs.
    seed= (default: 0)
    init= (default: none) for ClusterFit, the workdir of the baseline to cluster: about 44 images per cluster [ours].

Hours: not measured. Estimated as in docs/pods.md, at a third of the peak of a TPU v3-32 and 134 TFLOP a step, for
    preset=paper: 15 hours for 2018 (256,000 steps), 9 hours for 2019 (155,000 steps); a sixth of that for short.

Expect: not run. No train level x test level cell of the paper is confirmed (docs/paper.md section 4).
"""

from grafit_jax import config_files
from grafit_jax.config_files import RESNET50_PHOTOS
from grafit_jax.data.datasets import taxonomy
from grafit_jax.errors import choose

DATASETS = {
    "2018": {"data.source": "tfds:i_naturalist2018", "clusterfit.num_clusters": 10_000},
    "2019": {"data.source": "tfds:inaturalist2019", "clusterfit.num_clusters": 6_000},
}
PRESETS = {"paper": {"train.epochs": 600}, "short": {"train.epochs": 100}}


def get_config(arg=None):
    c, arg = config_files.start(
        arg, RESNET50_PHOTOS, PRESETS, year="2018", level="genus", method="grafit", preset="paper", seed=0, init=""
    )
    c.update_from_flattened_dict(DATASETS[choose(arg.year, "year", DATASETS)])
    c.data.train_level = choose(arg.level, "level", taxonomy.LEVELS)
    c.clusterfit.source = arg.init
    config_files.beside_others(c, queue_size=8192)
    return c


def sweep():
    """Yields the train levels of the table train level x test level, with and without Grafit's losses."""
    for year in DATASETS:
        for level in taxonomy.LEVELS:
            for method in ("baseline", "grafit"):
                yield {"year": year, "level": level, "method": method}
