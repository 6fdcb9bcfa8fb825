"""Synthetic runs and images for tests/test_page*.py, and a parser of the page."""

import dataclasses
import html.parser
import json

import numpy as np

from grafit_jax.data.records import Records, two_levels
from grafit_jax.report.shown import Run

# Worst-case class names, and how the page shows them.
ODD = ("<script>window.ran = 1</script>", "</script><b>", "\"quotes\" & 'more'", "Ærø 猫", "lone \udc80", "plain")
READ = tuple(name.replace("\udc80", "?") for name in ODD)


def records(label, coarse, label_names=ODD, coarse_names=("left & right", "</style>", "third"), **changes):
    """A split of colour noise images, 8 x 9 pixels."""
    n = len(coarse)
    image = np.random.default_rng(0).integers(0, 256, (n, 8, 9, 3), np.uint8)
    made = Records(image, two_levels(label, np.asarray(coarse), label_names, coarse_names))
    return dataclasses.replace(made, **changes)


def odd_records(per_class=8):
    """Six fine classes with odd names, two in each of three coarse classes."""
    label = np.tile(np.arange(6), per_class)
    return records(label, label // 2)


def embedding(test, noise, seed=0, dim=5):
    """Gaussian noise around a centre for each class."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(test.levels["coarse"].label.max() * 10 + 10, dim))
    label = test.train_label if test.label is None else test.label
    return (centre[label] + noise * rng.normal(size=(len(test), dim))).astype(np.float32)


def run(test, name="grafit", noise=0.5, seed=0):
    """A run with two epochs and two evaluations in its log."""
    log = [
        {"step": 5, "epoch": 1, "loss": 2.0, "learning_rate": 0.1},
        {"step": 5, "eval/map": 0.25, "eval/projector/map": 0.2, "eval/recall@5": 0.2},
        {"step": 10, "epoch": 2, "loss": 1.5, "learning_rate": 0.0},
        {"step": 10, "eval/map": 0.5, "eval/projector/map": 0.3, "eval/recall@5": 0.3},
    ]
    result = {
        "method": "grafit",
        "seed": seed,
        "metrics": {"map": 0.5, "recall@1": 0.8125, "coarse/knn_top1": 0.9, "projector/map": 0.25, "step": 10},
        "run": {"device": "1 x cpu", "packages": {"jax": "0.10"}},
        "config": {"data.source": "npz:<dir>", "seed": seed},
    }
    return Run(name, result, log, "trunk", embedding(test, noise, seed))


class Page(html.parser.HTMLParser):
    """Tags with their attributes and text in document order; asserts that tags are nested correctly."""

    VOID = ("meta", "link", "img", "line", "circle", "path", "polyline", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self._open = [], []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append([tag, dict(attributes), ""])
        if tag not in self.VOID:
            self._open.append(self.tags[-1])

    def handle_startendtag(self, tag, attributes):
        self.tags.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for entry in self._open:
            entry[2] += data

    def all(self, tag, **attributes):
        expected = {key.rstrip("_"): value for key, value in attributes.items()}
        return [entry for entry in self.tags if entry[0] == tag and expected.items() <= entry[1].items()]

    def rows(self, part):
        """Returns the rows of all tables of a section, as cell texts."""
        start = self.tags.index(self.all("section", id=part)[0]) + 1
        rows = []
        for tag, _, text in self.tags[start:]:
            if tag == "section":
                break
            if tag == "tr":
                rows.append([])
            elif tag in ("th", "td"):
                rows[-1].append(text)
        return rows

    def data(self, name):
        return json.loads(self.all("script", id=name)[0][2])
