"""Damaged checkpoints: any change to a file is detected, and a run or reader takes the one before."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import memory as memory_lib
from grafit_jax import parallel, restore
from grafit_jax.commands import training
from grafit_jax.errors import UserError
from grafit_jax.runs import checkpoint, workdir
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.state import TrainState
from helpers.runs import log_of


def restored(path, like, **options):
    checkpoints = Checkpoints(path, keep=2, **options)
    found = checkpoints.restore_newest(*like)
    checkpoints.close()
    return found


def leaves(found):
    return [np.asarray(x) for x in jax.tree.leaves(found[:2])]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.fixture
def small(tmp_path):
    """Two checkpoints of a few arrays, which restore faster than those of a network."""
    path, rng = tmp_path / "small", np.random.default_rng(0)
    checkpoints = Checkpoints(path, keep=2)
    for step in (14, 28):
        params = {"kernel": rng.normal(size=(128, 96)).astype(np.float32), "bias": np.ones(96, np.float32)}
        state = parallel.replicate(TrainState(np.int32(step), params, {}, {}, (), np.zeros(2, np.uint32)))
        memory = memory_lib.create(rng.normal(size=(64, 16)), np.arange(64) % 2, parallel.num_all_devices())
        memory = parallel.shard(jax.tree.map(parallel.own, memory))
        checkpoints.save(step, state, memory, {"config": {}})
    checkpoints.close()
    return path, (state, memory)


def kinds(step):
    """The files of a checkpoint, without the random parts of their names."""
    return {re.sub("[0-9a-f]{32}", "*", str(p.relative_to(step))) for p in step.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_damage_to_any_file_of_a_checkpoint_is_detected_or_harmless(trained_once, small, tmp_path, capsys):
    source, like = small
    assert kinds(source / "checkpoints" / "28") == kinds(trained_once / "checkpoints" / "28")
    newest = restored(source, like, read_only=True)
    shutil.copytree(source, tmp_path / "older")
    shutil.rmtree(tmp_path / "older" / "checkpoints" / "28")
    older = restored(tmp_path / "older", like)
    assert not same(older, newest)
    files = sorted(p.relative_to(source) for p in (source / "checkpoints" / "28").rglob("*") if p.is_file())
    assert len(files) > 8
    sizes = {file: (source / file).stat().st_size for file in files}
    arrays = {max((f for f in files if item in f.parts), key=sizes.get) for item in ("state", "memory")}
    rng, detected = np.random.default_rng(0), set()
    for number, file in enumerate(files):
        for damage in ("truncate", "flip", *(["riddle"] if file in arrays else [])):
            path = tmp_path / f"{number}_{damage}"
            shutil.copytree(source, path)
            content = bytearray((path / file).read_bytes())
            if not content:
                continue
            if damage == "truncate":
                content = content[: len(content) // 2]
            else:  # one bit, or one of every 256 bytes
                for place in rng.integers(len(content), size=1 if damage == "flip" else -(-len(content) // 256)):
                    content[place] ^= 1 << int(rng.integers(8))
            (path / file).write_bytes(content)
            capsys.readouterr()
            found = restored(path, like)
            assert found is not None, file
            aside, warning = path / "checkpoints" / "damaged-28", capsys.readouterr().err
            if same(found, newest):
                assert not aside.exists()
            else:
                assert same(found, older) and aside.is_dir() and not (path / "checkpoints" / "28").exists(), file
                assert "28: found a damaged checkpoint (" in warning
                assert f"moved it to {aside}, restoring the one before it" in warning
            if aside.exists():
                detected.add((str(file), damage))
            shutil.rmtree(path)
    # Much damage is harmless: to times, or to the last tenth of an array file, an index that Orbax stores twice.
    for file in arrays:
        assert {(str(file), "truncate"), (str(file), "riddle")} <= detected
    for file in (f for f in files if f.name == "_METADATA" or str(f).endswith("record/metadata")):
        assert (str(file), "truncate") in detected


def test_a_reader_skips_a_damaged_checkpoint_and_does_not_move_it(capsys, train_run):
    (train_run / "checkpoints" / "28" / "record" / "metadata").write_text("{")
    state = restore.newest(train_run)[1]
    assert int(state.step) == 14 and "28: found a damaged checkpoint (" in capsys.readouterr().err
    assert (train_run / "checkpoints" / "28").is_dir()
    shutil.rmtree(train_run / "checkpoints" / "14")
    with pytest.raises(UserError, match="found damaged checkpoints only; train again"):
        restore.newest(train_run)


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(trained_once, train_run):
    expected = json.loads((train_run / "metrics.json").read_text())
    (train_run / "metrics.json").unlink()
    shutil.rmtree(train_run / "checkpoints" / "28" / "state")
    assert training.train(workdir.read_config(train_run), train_run) == expected
    assert (train_run / "checkpoints" / "damaged-28").is_dir()
    assert not (train_run / "checkpoints" / "damaged-14").exists()
    assert log_of(train_run) == log_of(trained_once)


def test_a_digest_depends_on_bits_and_positions_but_not_on_devices():
    x = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)

    def digest(x):
        return checkpoint.digests({"x": x})["x"]

    first = digest(jax.numpy.asarray(x))
    assert first == digest(parallel.shard(x)) == digest(parallel.replicate(x))
    assert first == digest(jax.numpy.asarray(np.concatenate([x, np.zeros((3, 5), np.float32)])))  # padding
    # By hand: bits b at position p give (m ^ m >> 12) * (2 (p f ^ p >> 7) + 1) with m = (b ^ b >> 15) * 0x2C1B3C6D.
    total, bits = [0, 0], x.view(np.uint32).ravel()
    for p, b in enumerate(map(int, bits)):
        m = (b ^ b >> 15) * 0x2C1B3C6D % 2**32
        for i, f in enumerate((0x9E3779B1, 0x85EBCA77)):
            total[i] += (m ^ m >> 12) * (2 * ((p * f) % 2**32 ^ p >> 7) + 1)
    assert first == "".join(f"{t % 2**32:08x}" for t in total)
    rng, seen = np.random.default_rng(1), {first}
    for _ in range(200):
        flipped = bits.copy()
        flipped[rng.integers(80)] ^= np.uint32(1 << int(rng.integers(32)))
        seen.add(digest(jax.numpy.asarray(flipped.view(np.float32).reshape(16, 5))))
    assert len(seen) > 190 and digest(jax.numpy.asarray(x[::-1].copy())) not in seen


def test_arrays_that_differ_from_their_digests_are_damaged():
    saved = {"state": {"a": jnp.arange(3), "b": jnp.ones(2)}}
    digests = {item: checkpoint.digests(tree) for item, tree in saved.items()}
    checkpoint._compare(saved, digests)
    for damaged, name in (({"a": jnp.arange(3), "b": jnp.array([1.0, 1.5])}, "b"), ({"b": jnp.ones(2)}, "a")):
        with pytest.raises(ValueError, match=f"state/{name} differs from its saved digest"):
            checkpoint._compare({"state": damaged}, digests)
