"""What a run refuses before it trains, and the evaluation of a workdir without a run."""

import json

import pytest

from grafit_jax import restore
from grafit_jax.commands import training
from grafit_jax.errors import UserError
from grafit_jax.runs import workdir
from helpers.runs import small_config


def test_a_config_that_does_not_fit_the_data_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match=r"found eval\.recall_at up to 898; expected at most 897, the number of other"):
        training.train(small_config(**{"eval.recall_at": (1, 898)}), tmp_path / "run")
    with pytest.raises(UserError, match=r"images of 1 channels and views\.mean of 3 values"):
        training.train(small_config(**{"views.mean": (0.5, 0.5, 0.5)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_config_is_refused_with_the_difference_and_not_changed(tmp_path):
    path = tmp_path / "run"
    workdir.claim(path, small_config())
    before = (path / "config.json").read_text()
    with pytest.raises(UserError, match=r"another config \(loss\.temperature: 0\.05 -> 0\.1; seed: 0 -> 3\)"):
        training.train(small_config(**{"seed": 3, "loss.temperature": 0.1}), path)
    assert (path / "config.json").read_text() == before
    assert [p.name for p in path.iterdir()] == ["config.json"]
    workdir.check(path, small_config(**{"eval.clusters": True}))  # it only adds metrics


def test_only_allowed_config_keys_may_change(tmp_path):
    path, rate = tmp_path / "run", "optimizer.learning_rate"
    workdir.claim(path, small_config("baseline", **{"train.epochs": 1}))
    changed = small_config("baseline", **{"train.epochs": 2, rate: 0.01})
    both = r"--allow_config_change=optimizer\.learning_rate,train\.epochs\.$"
    with pytest.raises(UserError, match=rf"learning_rate: 0\.1 -> 0\.01; train\.epochs: 1 -> 2\).*{both}"):
        workdir.check(path, changed)
    with pytest.raises(UserError, match=r"another config \(train\.epochs: 1 -> 2\)"):
        workdir.check(path, changed, allowed=[rate])
    workdir.claim(path, changed, allowed=[rate, "train.epochs"])
    assert workdir.read_config(path).train.epochs == 2


def test_a_workdir_with_other_files_or_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("…")
    with pytest.raises(
        UserError, match=r"thesis: found unrelated files \(chapter1\.tex, …\); expected an empty folder"
    ):
        workdir.claim(tmp_path / "thesis", small_config())
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    workdir.check(tmp_path / "new" / "run", small_config())
    assert sorted(tmp_path.iterdir()) == before
    message = (
        r"file/run: cannot write to the workdir \(.*\); free disk space, make it writable or use another --workdir"
    )
    with pytest.raises(UserError, match=message):
        workdir.claim(tmp_path / "file" / "run", small_config())


def test_a_checkpoint_of_another_architecture_is_named(tmp_path, trains):
    path = tmp_path / "run"
    trains(small_config("baseline_mlp", **{"train.epochs": 1}), path)
    other = json.loads((path / "config.json").read_text())
    other["model"]["embed_dim"] = 24
    (path / "config.json").write_text(json.dumps(other))
    message = r"another architecture \(.*classifier/kernel: \(16, 2\)\); expected \(24, 2\)"
    with pytest.raises(UserError, match=message):
        restore.newest(path)


def test_evaluation_of_a_workdir_without_a_run_or_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"found no run \(no config\.json\)"):
        restore.newest(tmp_path)
    workdir.claim(tmp_path / "run", small_config())
    with pytest.raises(UserError, match=r"found no checkpoint"):
        restore.newest(tmp_path / "run")


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"found train\.batch_size = 1024; expected at most 899, the number of training"
    ):
        training.train(small_config(**{"train.batch_size": 1024}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
