"""Deep hierarchies: training levels, evaluation at every level, and tables of train level x test level."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from study import layout, render, reproduction, tables

from grafit_jax import experiment, restore
from grafit_jax.commands import training
from grafit_jax.data import hierarchy, sources
from grafit_jax.data.records import Level, Records
from grafit_jax.errors import UserError
from grafit_jax.retrieval import neighbors
from grafit_jax.retrieval.evaluate import Embedded, evaluate
from grafit_jax.runs import results, workdir
from helpers.command_lines import ROOT
from helpers.runs import small_config, split_features

# Eight species in five genera, three families and two orders.
SPECIES = np.arange(8)
PARENTS = {"order": [0, 0, 0, 0, 0, 1, 1, 1], "family": [0, 0, 0, 1, 1, 2, 2, 2], "genus": [0, 0, 1, 2, 2, 3, 4, 4]}


def levels_of(species):
    found = {name: Level(np.array(of)[species].astype(np.int32), tuple(f"{name}{i}" for i in range(max(of) + 1)))
             for name, of in PARENTS.items()}  # fmt: skip
    return found | {"species": Level(np.asarray(species, np.int32), tuple("abcdefgh"))}


def make(species, train_level="genus"):
    image = np.arange(len(species), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Records(image, levels_of(np.asarray(species)), train_level)


# Records


def test_the_finest_level_and_the_training_level():
    records = make([7, 0, 2])
    assert records.finest == "species" and records.label.tolist() == [7, 0, 2] and records.label_names == (*"abcdefgh",)
    assert records.train_label.tolist() == [4, 0, 1] and records.train_names[4] == "genus4"
    trained = dataclasses.replace(records, train_level="order")
    assert trained.train_label.tolist() == [1, 0, 0] and trained.train_names == ("order0", "order1")
    assert {name: x.tolist() for name, x in trained.labels.items()} == {
        "order": [1, 0, 0], "family": [2, 0, 0], "genus": [4, 0, 1], "": [7, 0, 2],
    }  # fmt: skip
    assert trained.fingerprint() == records.fingerprint()  # the data are the same
    other = records.relabel(lambda name, level: level if name != "family" else level._replace(label=level.label * 0))
    assert other.fingerprint() != records.fingerprint()


def test_each_class_lies_in_one_class_of_the_next_coarser_level():
    first, second = make([0, 1, 2, 5]), make([3, 7, 2])
    hierarchy.check_nested([first.levels, second.levels])
    # Genus 1 is in family 0 in one split, and in family 2 in the other.
    mixed = second.relabel(lambda name, level: level._replace(label=np.array([2, 1, 1])) if name == "genus" else level)
    with pytest.raises(
        UserError, match=r"found genus label 1 under family labels 0 and 2; expected one family label for"
    ):
        hierarchy.check_nested([first.levels, mixed.levels])


def test_select_renumbers_all_levels_alike_in_all_splits():
    splits = {"train": make([0, 7, 5, 3, 2]), "test": make([7, 6, 2, 5])}
    chosen = hierarchy.select(splits, (4, 1))  # genera
    train_split, test = chosen["train"], chosen["test"]
    assert train_split.image.ravel().tolist() == [1, 4] and test.image.ravel().tolist() == [0, 1, 2]
    assert train_split.label_names == test.label_names == ("c", "g", "h")
    assert train_split.label.tolist() == [2, 0] and test.label.tolist() == [2, 1, 0]
    assert test.train_names == ("genus1", "genus4") and test.train_label.tolist() == [1, 1, 0]
    assert test.levels["family"].names == ("family0", "family2") and test.levels["order"].names == ("order0", "order1")
    assert train_split.levels["order"].label.tolist() == [1, 0] and test.levels["family"].label.tolist() == [1, 1, 0]


def test_ancestors_of_the_training_classes():
    records = make([0, 1, 2, 5, 7])  # genera 0, 0, 1, 3, 4
    assert hierarchy.ancestors(records, "order", "x").tolist() == [0, 0, -1, 1, 1]
    assert hierarchy.ancestors(records, "genus", "x").tolist() == [0, 1, -1, 3, 4]
    expected = "found x = '{}'; expected data.train_level, genus, or a coarser level, one of order, family, genus."
    for level in ("species", "tribe"):
        with pytest.raises(UserError) as error:
            hierarchy.ancestors(records, level, "x")
        assert str(error.value) == expected.format(level)


# The training level


def write_npz(folder, **changes):
    label = np.repeat(np.arange(4), 5)
    arrays = {"image": np.zeros((20, 3, 2, 1), np.uint8), "label": label, "coarse_label": label // 2} | changes
    for split in sources.SPLITS:
        np.savez(folder / f"{split}.npz", **{key: a for key, a in arrays.items() if a is not None})
    return f"npz:{folder}"


def test_train_level_fine():
    fine, usual = (sources.load(source="digits", train_level=level) for level in ("fine", ""))
    for split, records in fine.items():
        np.testing.assert_array_equal(records.train_label, usual[split].label)
        assert records.train_names == tuple("0123456789") and records.train_level == "fine"
        np.testing.assert_array_equal(records.labels["coarse"], usual[split].train_label)
        assert usual[split].train_level == sources.usual_level("digits", ("coarse", "fine")) == "coarse"
        assert usual[split].train_names == ("closed loop", "no loop")


def test_coarse_classes_refer_to_the_coarse_level_whatever_the_training_level():
    records = sources.load(source="digits", coarse_classes=(0,), train_level="fine", holdout=0.2)["test"]
    assert records.train_names == ("0", "6", "8", "9") and set(records.labels["coarse"].tolist()) == {0}


@pytest.mark.parametrize(
    ("changes", "level", "message"),
    [
        (
            {},
            "genus",
            r"npz:.*: found data\.train_level = 'genus'; expected coarse or fine, or empty for coarse",
        ),
        ({"label": None}, "fine", r"npz:.*: found data\.train_level = 'fine'; expected coarse, or empty for coarse"),
        ({"label": np.full(20, -1)}, "fine", r"npz:.*: found .* 'fine'; expected coarse, or empty"),
    ],
)
def test_an_unknown_level_is_refused(tmp_path, changes, level, message):
    with pytest.raises(UserError, match=message) as error:
        sources.load(source=write_npz(tmp_path, **changes), train_level=level)
    assert "\n" not in str(error.value)


# Evaluation


def noisy(rng, n):
    species = rng.permutation(np.arange(n) % 8)
    embedding = (
        np.eye(8, 10)[species] + np.eye(5, 10)[np.array(PARENTS["genus"])[species]] + rng.normal(size=(n, 10)) / 2
    )
    return Embedded(embedding.astype(np.float32), make(species).labels)


def test_every_level_is_evaluated_with_one_neighbour_search(monkeypatch):
    rng = np.random.default_rng(0)
    train_split, test = noisy(rng, 131), noisy(rng, 70)
    searches, passes = [], []
    search, blocks = neighbors.search, neighbors.blocks
    monkeypatch.setattr(neighbors, "search", lambda *a, **k: searches.append(1) or search(*a, **k))
    monkeypatch.setattr(neighbors, "blocks", lambda *a, **k: passes.append(1) or blocks(*a, **k))
    got = evaluate(test, train_split, ks=(1, 5), knn_k=9, knn_temperature=0.1)
    assert len(searches) == 1 and len(passes) <= 2  # test among test, and test among train
    assert {path[0] for path, _ in map(results.split_key, got) if path} == {"order", "family", "genus"}


def test_embeddings_of_a_run_have_the_class_names_of_every_level(tmp_path):
    species = np.arange(64) % 8
    image = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
    records = {split: Records(image, levels_of(species), "family") for split in sources.SPLITS}
    run = experiment.load(small_config("baseline"), records)
    state = restore.initial(run)[0]
    assert state.params["classifier"]["kernel"].shape[-1] == 3  # the classes of the training level
    embedded = split_features(run, state, "test")
    assert embedded.label.tolist() == [*"abcdefgh"] * 8 and embedded.coarse_label is None
    assert embedded.further["family"][:8].tolist() == [f"family{i}" for i in PARENTS["family"]]
    assert list(embedded.further) == ["order", "family", "genus"]


# Tables of train level x test level


def result(method, level, seed=0, **metrics):
    found = {"method": method, "seed": seed, "config": {"data.train_level": level}, "metrics": metrics}
    return found | {"run": {"train_seconds": 60.0, "views_per_image": 1}}


def shown(table, results):
    name, _ = layout.row_names(results, {}, table.facts)
    return layout.markdown_table(results, ["method"], name, table.columns, *render._parts(table)).splitlines()


def test_a_method_has_a_row_for_each_train_level_and_test_level():
    table = tables.TABLES["cifar100_levels"]
    results = [
        result("baseline", "coarse", **{"knn_top1": 0.1, "coarse/knn_top1": 0.2, "map": 0.3, "coarse/map": 0.4}),
        result("grafit", "fine", **{"knn_top1": 0.5, "coarse/knn_top1": 0.6, "map": 0.7, "coarse/map": 0.8}),
        result("baseline", "fine", **{"knn_top1": 0.11, "coarse/knn_top1": 0.12, "map": 0.13, "coarse/map": 0.14}),
        result("baseline", "", 1, **{"knn_top1": 0.2, "coarse/knn_top1": 0.12, "map": 0.3, "coarse/map": 0.4}),
    ]
    assert shown(table, results) == [
        "| method | level | k-NN | mAP | training |",
        "|---|---|---|---|---|",
        "| `baseline`, trained on coarse labels | coarse | 16.0 ± 5.7 | 40.0 ± 0.0 | 2 × 60 s |",
        "| `baseline`, trained on coarse labels | fine | 15.0 ± 7.1 | 30.0 ± 0.0 | 2 × 60 s |",
        "| `grafit`, trained on fine labels | coarse | 60.0 | 80.0 | 60 s |",
        "| `grafit`, trained on fine labels | fine | 50.0 | 70.0 | 60 s |",
        "| `baseline`, trained on fine labels | coarse | 12.0 | 14.0 | 60 s |",
        "| `baseline`, trained on fine labels | fine | 11.0 | 13.0 | 60 s |",
    ]
    heading, parts = render._parts(tables.TABLES["inaturalist2018"])
    assert heading == "level"
    assert {level: key({}, "map") for level, key in parts.items()} == {
        "kingdom": "kingdom/map", "phylum": "phylum/map", "class": "class/map", "order": "order/map",
        "family": "family/map", "genus": "genus/map", "species": "map",
    }  # fmt: skip


@pytest.fixture
def trained(monkeypatch):
    """The runs that a table trains, in order, as (directory name, config); no training happens."""
    runs = []

    def pretend(config, directory):
        runs.append((directory.name, config))
        workdir.claim(directory, config)
        (directory / "metrics.json").write_text("{}")

    monkeypatch.setattr(training, "train", pretend)
    monkeypatch.setattr(results, "collect", lambda directory: {"at": directory.name, "method": "baseline"})
    return runs


def test_a_table_trains_every_method_at_every_level(tmp_path, trained):
    points = reproduction.points(tables.TABLES["cifar100_levels"], tmp_path, root=ROOT, seeds=[0, 2])
    found = [reproduction.result(point, {}) for point in points]
    expected = [
        (f"{method}_{level}{seed}", method, level)
        for level in ("coarse", "fine") for method in ("baseline", "clusterfit", "grafit") for seed in ("", "_seed2")
    ]  # fmt: skip
    assert [(name, c.method, c.data.train_level) for name, c in trained] == expected
    assert {tuple(c.data.coarse_classes) for _, c in trained} == {(0, 1, 2, 3)}
    assert [r["at"] for r in found] == [name for name, *_ in trained]
    assert points[-1].arg == "preset=cpu_short,method=grafit,level=fine,seed=2"
    clustered = {name: c.clusterfit.source for name, c in trained if c.method == "clusterfit"}
    assert clustered == {f"clusterfit_{run}": f"{tmp_path}/baseline_{run}" for run in (
        "coarse", "coarse_seed2", "fine", "fine_seed2",
    )}  # fmt: skip


def test_a_fine_tuning_table_trains_the_trunks_first_and_omits_their_rows(tmp_path, trained):
    points = reproduction.points(tables.TABLES["transfer"], tmp_path, root=ROOT)
    found = [reproduction.result(point, {}) for point in points]
    assert [(name, c.method, c.data.train_level, pathlib.Path(c.model.pretrained).name) for name, c in trained] == [
        ("from_scratch", "baseline", "fine", ""),
        ("baseline", "baseline", "", ""),
        ("from_baseline", "baseline", "fine", "baseline"),
        ("grafit", "grafit", "", ""),
        ("from_grafit", "baseline", "fine", "grafit"),
    ]
    assert [r["at"] for r in found] == ["from_scratch", "from_baseline", "from_grafit"]
    # The trunks have not seen the classes that they are evaluated on.
    halves = {name: set(c.data.coarse_classes) for name, c in trained}
    assert halves["baseline"] == halves["grafit"] == set(range(10))
    assert halves["from_scratch"] == halves["from_baseline"] == halves["from_grafit"] == set(range(10, 20))
    assert not {name for name, c in trained if c.model.trunk != "resnet8"}
    # Rows of one method state their initial weights.
    tuned = [
        {"method": "baseline", "seed": 0, "metrics": {"top1": v}, "run": {}, "config": {"model.pretrained": start}}
        for v, start in ((0.5, ""), (0.75, f"{tmp_path}/grafit"), (0.25, f"{tmp_path}/grafit_seed12"), (0.6, ""))
    ]
    assert shown(tables.TABLES["transfer"], tuned)[2:] == [
        "| `baseline`, trunk from scratch | 55.0 ± 7.1 | – | – | – | 2 seeds |",
        "| `baseline`, trunk from `grafit` | 50.0 ± 35.4 | – | – | – | 2 seeds |",
    ]


def test_a_config_without_a_key_has_its_default(tmp_path):
    from grafit_jax import config as config_lib

    old = json.loads(config_lib.to_json(small_config()))
    del old["data"]["train_level"], old["data"]["inat_categories_file"]
    assert config_lib.differences(config_lib.from_json(json.dumps(old)), small_config()) == []
    # The path of categories.json does not count as a difference, the training level does.
    assert config_lib.differences(small_config(), small_config(**{"data.inat_categories_file": "c.json"})) == []
    changed = config_lib.differences(small_config(), small_config(**{"data.train_level": "fine"}))
    assert changed == ["data.train_level: '' -> 'fine'"]
