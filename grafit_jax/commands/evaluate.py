"""Prints the metrics of a checkpoint, or of a file of embeddings, as one line of JSON; values are fractions.

python experiments/evaluate.py --workdir=runs/grafit
python experiments/evaluate.py --features=test.npz [--gallery=train.npz] [--k=1,2,5,10] [--probe] [--clusters]

`grafit evaluate` of the installed package is the same command.

--workdir evaluates the newest checkpoint. --features without --gallery is its own gallery, and every query is excluded
from its own neighbours by id. --leave_out does the same with a --gallery that contains the queries.

--probe adds the top-1 of a logistic regression that is trained on the frozen embeddings of the training images (the
trunk features of a workdir, or the gallery) and tested on the test images.

--clusters adds how well k-means clusters of the test images agree with their finest classes, among all images and
within each class of the next coarser level.
"""

import json
import pathlib

from absl import flags

from grafit_jax import config, experiment, parallel, restore
from grafit_jax.commands import cli
from grafit_jax.errors import UserError, writing
from grafit_jax.retrieval import embeddings
from grafit_jax.retrieval.evaluate import evaluate_features
from grafit_jax.runs import workdir

_DEFAULTS = config.default().eval

_WORKDIR = flags.DEFINE_string("workdir", None, "workdir of a run")
_DATA_DIR = flags.DEFINE_string("data_dir", None, cli.DATA_DIR)
_FEATURES = flags.DEFINE_string("features", None, "embeddings and labels: .npz, .parquet, or .npy with a .csv")
_GALLERY = flags.DEFINE_string("gallery", None, "embeddings and labels of the gallery (default: --features)")
_LEAVE_OUT = flags.DEFINE_bool(
    "leave_out", False, "exclude the gallery row with the query's id or, if no ids agree, with its file name"
)
_K = flags.DEFINE_list("k", [str(k) for k in _DEFAULTS.recall_at], "values of k in recall@k, as 1,2,5,10")
_KNN_K = flags.DEFINE_integer("knn_k", _DEFAULTS.knn_k, "number of neighbours that vote", lower_bound=1)
_KNN_TEMPERATURE = flags.DEFINE_float(
    "knn_temperature", _DEFAULTS.knn_temperature, "temperature of the votes", lower_bound=1e-6
)
_PROBE = flags.DEFINE_bool("probe", False, "add the top-1 of a logistic regression")
_CLUSTERS = flags.DEFINE_bool("clusters", False, "add the agreement of k-means clusters with the classes")
_OUT = flags.DEFINE_string("out", None, "file to write the line to, as well as stdout")
_OF_FEATURES = ("gallery", "leave_out", "k", "knn_k", "knn_temperature")
cli.require_numbers("k")


def main(argv):
    if _WORKDIR.value is not None and _FEATURES.value is None:
        given = [name for name in _OF_FEATURES if flags.FLAGS[name].present]
        if given:
            raise UserError(f"found --{given[0]} with --workdir, whose config has the settings; remove --{given[0]}.")
        parallel.warn_of_unseen()
        run, state = restore.newest(pathlib.Path(_WORKDIR.value), data_dir=_DATA_DIR.value)
        metrics = experiment.evaluate(run, state, probe=_PROBE.value, clusters=_CLUSTERS.value)
    elif _FEATURES.value is not None and _WORKDIR.value is None:
        queries = embeddings.load(pathlib.Path(_FEATURES.value))
        gallery = None
        if _GALLERY.value is not None:
            gallery = embeddings.load(pathlib.Path(_GALLERY.value))
            embeddings.check_alike(_FEATURES.value, queries.made_by, _GALLERY.value, gallery.made_by)
        metrics = evaluate_features(
            queries,
            gallery,
            leave_out=_LEAVE_OUT.value,
            ks=[int(k) for k in _K.value],
            knn_k=_KNN_K.value,
            knn_temperature=_KNN_TEMPERATURE.value,
            probe=_PROBE.value,
            clusters=_CLUSTERS.value,
        )
    else:
        raise UserError("found both or neither of --workdir=DIR and --features=FILE; expected one.")
    line = json.dumps(metrics)
    print(line)
    if _OUT.value is not None:
        path = pathlib.Path(_OUT.value)
        with writing(path):
            workdir.write(path, line + "\n")


if __name__ == "__main__":
    cli.run(main)
