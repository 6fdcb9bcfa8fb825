"""model.init: a run continues from the trunk and heads of another model."""

import shutil

import jax
import numpy as np
import pytest

import grafit_jax
from grafit_jax import config as config_lib
from grafit_jax import config_checks, config_files, experiment, methods, restore, saved
from grafit_jax.errors import UserError
from grafit_jax.retrieval.clustering import Clusters
from grafit_jax.saved import description
from helpers import image_files
from helpers.command_lines import ROOT
from helpers.runs import small_config

OWN = ROOT / "configs" / "own.py"
PARTS = ["trunk", "projector", "predictor", "classifier"]


def leave(folder, config, shift=0.5, **options):
    """Saves the initial model of a run, with shifted statistics as if after 3 steps; returns its variables."""
    run = experiment.load(config, **options)
    state = jax.device_get(restore.initial_state(run))
    variables = {"params": state.params, "batch_stats": jax.tree.map(lambda x: x + shift, state.batch_stats)}
    saved.write(folder, saved.Stored(description.of(config, run.records), variables, 3, {}), card="")
    return variables


def started(config, **options):
    return jax.device_get(restore.initial_state(experiment.load(config, **options)))


def assert_equal(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected) and jax.tree.leaves(tree)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def on_folder(root, **overrides):
    values = {
        "data.source": f"folder:{root}", "data.image_size": 8, "train.batch_size": 8, "eval.recall_at": (1,),
        "views.mean": (0.5, 0.5, 0.5), "views.std": (0.3, 0.3, 0.3), "eval.layers": ("trunk",),
    }  # fmt: skip
    return small_config(**values | overrides)


def write_classes(root, *names):
    """Writes 8 training and 4 test images of each class."""
    image_files.write_tree(root, {f"{s}/{name}": n for name in names for s, n in (("train", 8), ("test", 4))})
    return root


def test_trunk_and_all_heads_are_those_of_the_model_and_everything_else_is_new(tmp_path, capsys):
    theirs = leave(tmp_path / "model", small_config("grafit_fc", seed=7))
    state = started(small_config("grafit_fc", **{"model.init": str(tmp_path / "model")}))
    assert_equal(state.params, theirs["params"])
    assert_equal(state.batch_stats, theirs["batch_stats"])
    assert_equal(state.target_params, {name: theirs["params"][name] for name in ("trunk", "projector")})
    fresh = started(small_config("grafit_fc"))
    assert_equal((state.step, state.opt_state, state.rng), (fresh.step, fresh.opt_state, fresh.rng))
    note = f"initial weights of {tmp_path}/model, step 3: trunk, projector, predictor, classifier\n"
    assert capsys.readouterr().err == note


@pytest.mark.parametrize(
    ("source", "method", "taken", "options"),
    [
        ("grafit", "baseline", ["trunk"], {}),
        ("baseline", "grafit_fc", ["trunk"], {}),
        ("grafit", "grafit_fc", ["trunk", "projector", "predictor"], {}),
        ("baseline_mlp", "grafit", ["trunk", "projector"], {}),
        ("snca", "snca_plus", ["trunk"], {}),  # a linear projector is another head than an MLP
        ("supce", "baseline", ["trunk", "classifier"], {}),
        # Both see 64 numbers, but of the trunk in one and of the projector in the other.
        ("baseline", "baseline_mlp", ["trunk"], {"model.embed_dim": 64}),
        ("baseline", "ancor", ["trunk"], {"model.embed_dim": 64}),
        # Both see the projector, one through a ReLU.
        ("baseline_mlp", "ancor", ["trunk", "projector"], {}),
        # A classifier with a bias, and one without.
        ("grafit_fc", "grafit_cosine", ["trunk", "projector", "predictor"], {}),
        ("grafit_cosine", "grafit_fc", ["trunk", "projector", "predictor"], {}),
    ],
)
def test_heads_that_one_of_the_methods_lacks_start_from_the_seed(tmp_path, source, method, taken, options):
    theirs = leave(tmp_path / "model", small_config(source, seed=7, **options))
    state = started(small_config(method, **options, **{"model.init": str(tmp_path / "model")}))
    fresh = started(small_config(method, **options))
    assert [name for name in PARTS if name in state.params] == [name for name in PARTS if name in fresh.params]
    for name, part in state.params.items():
        assert_equal(part, (theirs["params"] if name in taken else fresh.params)[name])


@pytest.mark.parametrize(
    ("classes", "note"),
    [
        (("a", "b"), None),
        (("a", "b", "c"), r"(2 classes before, 3 now)"),
        (("a", "c"), r"(2 classes before, 2 now, of other names)"),
    ],
)
def test_a_classifier_is_kept_if_the_class_names_are_equal(tmp_path, capsys, classes, note):
    theirs = leave(tmp_path / "model", on_folder(write_classes(tmp_path / "old", "a", "b"), method="baseline", seed=7))
    config = on_folder(write_classes(tmp_path / "new", *classes), method="baseline")
    fresh = started(config)
    config.model.init = str(tmp_path / "model")
    capsys.readouterr()
    state = started(config)
    assert_equal(state.params["trunk"], theirs["params"]["trunk"])
    assert_equal(state.params["classifier"], (theirs["params"] if note is None else fresh.params)["classifier"])
    assert state.params["classifier"]["bias"].shape == (len(classes),)
    expected = "trunk, classifier\n" if note is None else f"trunk; from the seed: classifier {note}\n"
    assert capsys.readouterr().err == f"initial weights of {tmp_path}/model, step 3: {expected}"


def test_a_classifier_of_clusters_is_not_kept(tmp_path):
    def clusters(records):
        n = len(records["train"])
        return Clusters(np.zeros((2, 64), np.float32), np.arange(n, dtype=np.int32) % 2, 0.0, 1)

    options = {"clusterfit.source": "runs/baseline", "clusterfit.num_clusters": 2}
    theirs = leave(tmp_path / "model", small_config("clusterfit", seed=7, **options), clusters=clusters)
    state = started(small_config("baseline", **{"model.init": str(tmp_path / "model")}))
    assert_equal(state.params["trunk"], theirs["params"]["trunk"])
    assert_equal(state.params["classifier"], started(small_config("baseline")).params["classifier"])


def test_models_that_do_not_fit_are_errors(tmp_path):
    leave(tmp_path / "model", small_config())
    for options, message in (
        ({"model.trunk": "resnet18"}, r"found model\.trunk = resnet18; expected model\.trunk = resnet8, as in that"),
        ({"model.stem": "cifar"}, r"model: found model\.stem = cifar; .* use model\.stem = patch2\.$"),
        ({"model.embed_dim": 8}, r"found model\.embed_dim = 8; .* use model\.embed_dim = 16\.$"),
        (
            {"model.embed_dim": 8, "model.head_hidden_dim": 16},
            r"found model\.embed_dim = 8, model\.head_hidden_dim = 16; .* use model\.embed_dim = 16, model\.head_h",
        ),
        ({"model.head_batch_norm": False}, r"model\.head_batch_norm = False; expected model\.head_batch_norm = True"),
        ({"model.init": str(tmp_path / "none")}, r"none: found no such folder; expected a workdir, the folder of a"),
    ):
        config = small_config(**{"model.init": str(tmp_path / "model")} | options)
        with pytest.raises(UserError, match=message):
            restore.check_start(experiment.load(config))
    # A run without these heads may have other keys for them.
    options = {"model.init": str(tmp_path / "model"), "model.embed_dim": 8}
    restore.check_start(experiment.load(small_config("baseline", **options)))
    colour = on_folder(write_classes(tmp_path / "photos", "a", "b"), **{"model.init": str(tmp_path / "model")})
    with pytest.raises(UserError, match=r"trunk: found .*Conv_0.* of shape \(3, 3, 4, 16\); .* the same channels\.$"):
        restore.check_start(experiment.load(colour))
    both = small_config(**{"model.init": "runs/a", "model.pretrained": "runs/b"})
    with pytest.raises(UserError, match=r"model\.init = 'runs/a'; expected none with model\.pretrained.*use one of"):
        config_checks.validate(both, num_devices=1)


def test_own_py_continues_with_the_config_of_a_run_or_a_saved_model(tmp_path):
    base = small_config("grafit_fc", **{"model.pretrained": "runs/other", "seed": 7, "data.coarse_classes": (1,)})
    base.data.cache = "/scratch/decoded"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config_lib.to_json(base))
    leave(tmp_path / "model", small_config("grafit_fc"))
    split = {"data.holdout": 0.25, "data.test_split": "val", "data.train_level": "fine", "data.source": "folder:photos"}
    split |= {"loss.levels": ("coarse", "fine"), "loss.level_weights": (0.5, 1.0)}
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "config.json").write_text(config_lib.to_json(small_config(**split)))
    for name in ("run", "model"):
        c = config_files.load_file(OWN, f"init={tmp_path / name},dir=photos,seed=3")
        assert c.model == small_config(**{"model.init": str(tmp_path / name)}).model
        assert (c.method, c.seed, c.data.source, c.data.coarse_classes) == ("grafit_fc", 3, "folder:photos", ())
        assert c.train == base.train and c.views == base.views
    c = config_files.load_file(OWN, f"init={tmp_path / 'split'},dir=photos")
    assert (c.data.holdout, c.data.test_split, c.data.train_level) == (0.0, "", "")
    assert (c.loss.levels, c.loss.level_weights) == ((), ())
    (tmp_path / "photos").mkdir()
    absolute = base.copy_and_resolve_references()
    absolute.update_from_flattened_dict(split | {"data.source": f"folder:{tmp_path / 'photos'}"})
    (tmp_path / "split" / "config.json").write_text(config_lib.to_json(absolute))
    assert config_files.load_file(OWN, f"init={tmp_path / 'split'},method=snca").loss.levels == ("coarse", "fine")
    assert config_files.load_file(OWN, f"init={tmp_path / 'split'},method=baseline").loss.levels == ()
    absolute.data.source = "folder:photos"
    (tmp_path / "split" / "config.json").write_text(config_lib.to_json(absolute))
    same_data = config_files.load_file(OWN, f"init={tmp_path / 'run'},method=byol")
    base.data.cache = ""  # that of another machine, perhaps
    assert (same_data.method, same_data.data) == ("byol", base.data)
    for arg, message in (
        (f"init={tmp_path / 'run'},preset=gpu", r"found init=\S+run and preset=gpu; expected one of them"),
        (f"init={tmp_path / 'split'}", r"found no place of its images \(folder:photos\); use dir=DIR or csv=FILE"),
        ("init=nowhere,dir=photos", r"nowhere: found no such folder; expected a workdir"),
        (f"init={tmp_path},dir=photos", r"found no run \(no config\.json\)"),
    ):
        with pytest.raises(UserError, match=message):
            config_files.load_file(OWN, arg)


def test_grafit_plus_has_its_recipe_and_its_embeddings_are_both_layers(tmp_path):
    c = config_files.load_file(OWN, "dir=photos,preset=scratch,method=grafit_plus")
    assert (c.loss.instance_weight, c.eval.layers[0]) == (4.0, "concat")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    for method, width in (("grafit_plus", 64 + 16), ("grafit", 64)):
        leave(tmp_path / method, small_config(method, **methods.get(method).recipe), shift=0.0)
        model = grafit_jax.load(tmp_path / method)
        gallery = grafit_jax.Gallery.build(model, images)
        assert model.embed(images).shape == gallery.features.embedding.shape == (2, width)
        assert gallery.layer == ("concat" if method == "grafit_plus" else "trunk")
    # Another method continues without the recipe.
    for method, weight, layer in (("", 4.0, "concat"), ("baseline", 1.0, "trunk")):
        c = config_files.load_file(OWN, f"init={tmp_path / 'grafit_plus'},dir=photos,method={method}")
        assert (c.loss.instance_weight, c.eval.layers[0]) == (weight, layer)


def test_training_continues_on_a_larger_folder_and_resumes_without_the_first_run(tmp_path, trains, cli, capsys):
    write_classes(tmp_path / "photos", "a", "b")
    trains(on_folder(tmp_path / "photos", method="grafit_fc", **{"train.epochs": 1}), tmp_path / "first")
    write_classes(tmp_path / "photos", "a", "b", "c")
    arguments = [
        "train", f"--config={OWN}:init={tmp_path / 'first'},dir={tmp_path / 'photos'}",
        f"--workdir={tmp_path / 'second'}",
    ]  # fmt: skip
    done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    note = "first, step 2: trunk, projector, predictor; from the seed: classifier (2 classes before, 3 now)"
    assert note in done.stderr
    first, second = (saved.read(tmp_path / name) for name in ("first", "second"))
    assert (first.step, second.step) == (2, 3)
    assert second.variables["params"]["classifier"]["bias"].shape == (3,)
    shutil.rmtree(tmp_path / "first")
    config = saved.config_of(tmp_path / "second")
    config.train.epochs = 2
    assert trains(config, tmp_path / "second", allowed=["train.epochs"])["step"] == 6
    assert "initial weights" not in capsys.readouterr().err
