"""Benchmarks: counts, comparisons and output; times are not tested."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import gpu, memory, steps, train
from study import render

from grafit_jax import experiment, losses, parallel
from grafit_jax.runs.tables import plain_table
from helpers.command_lines import ROOT, shell_environment


def test_growth_fits_the_line_and_exponent_of_a_function():
    line = train.growth("n", [1, 2, 4], lambda n: 3.0 * n + 1.0)
    assert line["curve_s"] == [4.0, 7.0, 13.0]
    assert (line["seconds_per_unit"], line["seconds_at_zero"]) == pytest.approx((3.0, 1.0))
    assert train.growth("n", [1, 2, 4], lambda n: 5.0 * n**2)["exponent"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("TPU v5 lite", 197e12), ("cpu", None)],
)
def test_the_peak_of_a_device_is_found_by_its_name(kind, peak):
    assert gpu.peak_flops(kind) == peak


@pytest.mark.slow
def test_model_flops_are_four_forward_passes_of_every_view():
    def flops(**overrides):
        config = steps.config("resnet18", 8, **overrides)
        return gpu.model_flops(experiment.load(config, steps.records(100)))

    per_image = flops() / (4 * 8 * 2)
    # Multiply-adds of a CIFAR ResNet-18 (stem, 4 x stage, 3 projections), of its projector and predictor; 2 FLOPs
    # each. XLA does not count products with padding: an eighth at most.
    stem, stage1 = 32 * 32 * 27 * 64, 4 * 32 * 32 * 9 * 64 * 64
    later = (
        3 * (stage1 - stage1 // 8) + 3 * 16 * 16 * 64 * 128
    )  # equal work in each stage, half in its first convolution
    heads = 512 * 1024 + 1024 * 128 + 128 * 1024 + 1024 * 128
    expected = 2 * (stem + stage1 + later + heads)
    assert 0.85 * expected < per_image < 1.02 * expected
    assert flops(**{"views.num_views": 6}) == pytest.approx(3 * flops())


@pytest.mark.slow
def test_minutes_of_a_run_follow_from_its_steps(monkeypatch):
    few = {split: r.take(np.arange(len(r)) < 300) for split, r in steps.records(300).items()}
    monkeypatch.setattr(steps, "data", lambda: few)
    monkeypatch.setattr(parallel, "devices", lambda: jax.local_devices()[:1])
    small = {
        "model.head_hidden_dim": 16,
        "model.embed_dim": 8,
        "queue.size": 128,
        "eval.recall_at": (1,),
        "train.epochs": 50,
    }
    line = gpu.recipe("float32", arg="dataset=cifar100,method=grafit_maskcon,preset=cpu", **small)
    assert line["steps_of_the_run"] == 50 * 2  # 300 images are 2 batches of 128
    assert line["run_minutes"] * 60 == pytest.approx(line["seconds"] * 100) and line["goal_s"] == 6.0
    assert line["work"] == "grafit_maskcon step, resnet8, batch 128, float32"
    assert line["images_per_second"] * line["seconds"] == pytest.approx(128)


def test_the_peers_losses_equal_ours(torch):
    from benchmarks import torch_peer

    rng = np.random.default_rng(0)
    z, memory = rng.normal(size=(6, 8)).astype(np.float32), rng.normal(size=(20, 8)).astype(np.float32)
    memory /= np.linalg.norm(memory, axis=1, keepdims=True)
    labels, ids = np.arange(20) % 4, np.array([3, 0, 19, 7, 8, 2])
    expected = losses.knn_loss(z, labels[ids], memory, labels, temperature=0.05, own_slot=ids)
    got = torch_peer.knn_loss(*(torch.from_numpy(x) for x in (z, labels[ids], memory, labels, ids)), 0.05)
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    views = rng.normal(size=(2, 3, 6, 8)).astype(np.float32)
    got = torch_peer.instance_loss(*map(torch.from_numpy, views))
    np.testing.assert_allclose(got, losses.instance_loss(*map(jnp.asarray, views)), rtol=1e-5)


def test_a_search_on_a_device_is_compared_with_torch(torch):
    line = gpu.search(20, 300, 5, device="cpu")
    assert line["work"] == "20 x 300 x 128, k = 5" and line["peer"] == "PyTorch, matmul and topk"
    assert line["queries_where_the_peer_differs"] == 0 and line["ratio"] == line["seconds"] / line["peer_seconds"]


def test_an_entry_is_a_line_of_json_with_its_environment_and_a_table(cli):
    done = cli("benchmark", "--suite=start", "--entries=import")
    assert done.returncode == 0, done.stderr
    [line] = map(json.loads, done.stdout.splitlines())
    assert line["entry"] == "import" and 0 < line["seconds"] < 60 and line["environment"]["revision"]
    assert done.stderr.endswith(render.render_benchmark([line], plain_table) + "\n")


def test_recording_part_of_a_suite_and_unknown_entries_are_errors(cli):
    for arguments, said in (
        (["--entries=import", "--record"], "found --record with --entries; expected a whole suite"),
        (["--entries=nothing"], "found entry 'nothing' of suite start; expected one of resnet50_workdir"),
    ):
        done = cli("benchmark", "--suite=start", *arguments)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_step_on_npz_images_needs_no_tensorflow_and_no_plots(tmp_path):
    for split in ("train", "test"):
        np.savez(
            tmp_path / f"{split}.npz",
            image=np.zeros((64, 32, 32, 3), np.uint8),
            label=np.arange(64) % 4,
            coarse_label=np.arange(64) % 4 // 2,
        )
    blocked = ("tensorflow", "tensorflow_datasets", "tensorboardX", "sklearn", "matplotlib", "torch")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
from benchmarks import steps
from grafit_jax.data import sources
config = steps.config("resnet8", 16, **{{"model.head_hidden_dim": 32}})
ours = steps.Ours(config, sources.load(source="npz:{tmp_path}"))
ours.call()
print(ours.steps, steps.peer(config, ours.run.records, "cpu", tuned=True))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=ROOT, env=shell_environment() | {"PYTHONPATH": str(ROOT / "experiments")},
    )  # fmt: skip
    assert done.stdout.split() == ["1", "None"], done.stderr


@pytest.mark.parametrize(
    ("gibibytes", "names"),
    [(7.0, "v2, v3, v5e, v4, v6e, v5p"), (7.1, "v3, v5e, v4, v6e, v5p"), (31.5, "v5p"), (94.5, "none")],
)
def test_memory_names_the_tpus_that_hold_a_step_and_the_reserve(gibibytes, names):
    assert memory.fits(gibibytes) == names
