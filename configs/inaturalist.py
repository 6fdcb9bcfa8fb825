"""iNaturalist 2018 and 2019: trained on one level of the tree of life, judged at all seven (docs/paper.md, 2, 5).

    python experiments/train.py --config=configs/inaturalist.py:year=2019,level=genus,method=grafit \\
        --workdir=runs/inat_genus --config.data.data_dir=$HOME/tensorflow_datasets

`level` is one of kingdom, phylum, class, order, family, genus, species. Data, once:
  2018  tfds build i_naturalist2018, and its categories.json (with real names, from the competition's page) into
        i_naturalist2018/ of TFDS's data directory, or --config.data.inat_categories_file=FILE. TFDS itself has the
        species alone.
  2019  a folder with train_val2019/, train2019.json, val2019.json and categories.json (with real names):
        python experiments/prepare.py --dataset=inaturalist2019 --manual_dir=FOLDER

Presets:
  paper  ResNet-50 at 224 px, T = 4, 600 epochs, batch 1024: the recipe as far as it is known. By arithmetic, not
         measured, at 134 TFLOP a step and a third of the peak of a TPU v3-32: 256,000 steps and 15 hours for 2018,
         155,000 steps and 9 hours for 2019.
  short  the same for 100 epochs: a sixth of that.
ClusterFit starts from a finished baseline: `method=clusterfit,init=runs/inat_baseline`; about 44 images in a cluster
[ours]. The paper's cells of train level x test level are not confirmed; no number to expect.
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
    return c


def sweep():
    """Train levels of the table train level x test level, with and without Grafit's losses."""
    for year in DATASETS:
        for level in taxonomy.LEVELS:
            for method in ("baseline", "grafit"):
                yield {"year": year, "level": level, "method": method}
