"""What a network needs besides its weights to embed images: its config, the shape of its images, its class names."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from grafit_jax import config as config_lib
from grafit_jax import evaluation, methods
from grafit_jax.data.files import read_json
from grafit_jax.data.records import Records
from grafit_jax.errors import UserError
from grafit_jax.models import Network
from grafit_jax.runs import workdir
from grafit_jax.views import augment

# File of a workdir with the facts that its config.json lacks.
FILE = "model.json"
# Version of the format of `Description.facts`, raised when an older version could not read it.
FORMAT = 1
_REMEDY = "start the training again with the same command, which writes it"


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """A network without its weights.

    Attributes:
      config: the config of its training.
      image_shape: (H, W, C) of the images of its training, as they enter evaluation.
      classes: level -> class names, from coarse to fine.
      train_level: the level that it was trained on.
    """

    config: ml_collections.ConfigDict
    image_shape: tuple[int, int, int]
    classes: Mapping[str, tuple[str, ...]]
    train_level: str

    @property
    def method(self) -> methods.Method:
        return methods.get(self.config.method)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that give embeddings: "trunk" and, with a projector, "projector" and "concat"."""
        return config_lib.LAYERS if self.method.projector else config_lib.LAYERS[:1]

    @property
    def headline(self) -> str:
        """The layer of the headline metrics, whose embeddings are the default."""
        return self.config.eval.layers[0]

    @functools.cached_property
    def network(self) -> Network:
        """Trunk and projector, without predictor and classifier."""
        return methods.build_network(self.method, self.config.model, num_classes=1).clone(
            predictor=None, classifier=None
        )

    @functools.cached_property
    def views(self) -> augment.Views:
        return evaluation.eval_views(self.config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns dotted name -> shape of the arrays of trunk and projector."""
        image = jnp.zeros((1, self.views.size, self.views.size, self.image_shape[-1]))
        abstract = jax.eval_shape(lambda: self.network.init(jax.random.key(0), image, train=False))
        return {name: leaf.shape for name, leaf in config_lib.flatten(abstract).items()}

    def facts(self) -> dict[str, Any]:
        """Returns what the config lacks, for JSON."""
        return {
            "format": FORMAT,
            "image_shape": list(self.image_shape),
            "train_level": self.train_level,
            "classes": {name: list(names) for name, names in self.classes.items()},
        }

    def digest(self, variables: Mapping[str, Any]) -> str:
        """Returns 16 hexadecimal digits that identify the embeddings: those of the weights, network and preprocessing.

        Args:
          variables: "params" and "batch_stats" of the network; only trunk and projector count.
        """
        m, data, views = self.config.model, self.config.data, self.views
        facts = {
            "projector": self.method.projector,
            "model": [m.trunk, m.stem, m.dtype, m.head_batch_norm, m.projector_norm],
            "image": [*self.image_shape, data.image_size, data.resize_mode],
            "view": [views.size, views.resize, *views.mean, *views.std],
        }
        digest = hashlib.sha256(json.dumps(facts).encode())
        for name, leaf in sorted(config_lib.flatten(variables).items()):
            if is_embedding(name):
                digest.update(f"{name} {leaf.shape}".encode())
                digest.update(np.ascontiguousarray(leaf, np.float32).tobytes())
        return digest.hexdigest()[:16]


def of(config: ml_collections.ConfigDict, records: Mapping[str, Records]) -> Description:
    """Returns the description of a run on these records."""
    test = records["test"]
    height, width, channels = test.image.shape[1:]
    classes = {name: level.names for name, level in test.levels.items() if level.names}
    return Description(config, (height, width, channels), classes, test.train_level)


def write(path: pathlib.Path, config: ml_collections.ConfigDict, records: Mapping[str, Records]) -> None:
    """Writes model.json into the workdir `path`."""
    workdir.put(path, FILE, json.dumps(of(config, records).facts()) + "\n")


def read(path: pathlib.Path) -> Description:
    """Reads the description of the run in the workdir `path`, without its data.

    Raises:
      UserError: there is no run, or its files are damaged or of a newer version.
    """
    config = workdir.read_config(path)
    return from_facts(path / FILE, read_json(path / FILE, dict, _REMEDY), config, _REMEDY)


def from_facts(
    where: pathlib.Path, facts: Mapping[str, Any], config: ml_collections.ConfigDict, remedy: str
) -> Description:
    """Returns the description of `Description.facts` in the file `where`.

    Raises:
      UserError: the facts are of a newer version or incomplete; the message ends with `remedy`.
    """
    try:
        if int(facts["format"]) > FORMAT:
            raise UserError(
                f"{where}: found format {facts['format']}; expected at most {FORMAT}; use a newer grafit_jax."
            )
        height, width, channels = map(int, facts["image_shape"])
        classes = {str(name): tuple(map(str, names)) for name, names in facts["classes"].items()}
        return Description(config, (height, width, channels), classes, str(facts["train_level"]))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{where}: found no description of a model ({type(error).__name__}: {error}); {remedy}."
        ) from error


def is_embedding(name: str) -> bool:
    """Returns whether embeddings depend on the array of this dotted name: one of trunk or projector."""
    return name.split(".")[1:2] in (["trunk"], ["projector"])


def misfit(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """Describes the first array whose shape differs, given name -> shape; empty if there is none."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            return f"found {name} of shape {found.get(name, '(absent)')}; expected {expected.get(name, '(absent)')}"
    return ""
