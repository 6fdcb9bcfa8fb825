"""Small faults of the library ("mutants"), each of which the fast tests have to find.

    python tests/mutants.py [--only=NAME,NAME] [--jobs=2] [--slow]

Copies the checkout to a temporary folder, once for each job. There it applies one fault at a time, runs the tests that
are listed beside it until the first one fails, and undoes the fault. It prints a line for each: killed, with the test
that failed, or SURVIVED. The same tests have to pass on the library as it is.

Exit status: 0 if every fault of REQUIRED and nine in ten of OTHERS are killed, else 1. A pytest that neither passes nor
fails (no tests, a crash) is an error, never a kill.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Seconds that the tests of one fault may take, and those of all faults together.
LIMIT, LIMIT_OF_ALL = 300, 3600
# Share of OTHERS that may survive.
MAY_SURVIVE = 0.1


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A fault: `new` in place of `old`, which occurs once in grafit_jax/`file`; `tests` are pytest's node ids."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutant(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    """`tests` as "train_step::test_name" for tests/test_train_step.py::test_name."""
    named = (f"tests/test_{test.replace('::', '.py::', 1)}" for test in tests)
    return Mutant(name, file, old, new, tuple(named))


# fmt: off
REQUIRED = (
    mutant("memory never updated", "train_step.py",
           "if memory is not None:", "if False:",
           "train_step::test_memory_takes_half_of_the_first_views_embedding_after_scoring"),
    mutant("memory updated before scoring", "train_step.py",
           "objective(out, targets, batch, memory, state.queue)",
           "objective(out, targets, batch, memory and memory_lib.update(memory, batch['id'], "
           "out.projection[: len(batch['id'])], axis_name=axis_name), state.queue)",
           "train_step::test_losses_are_the_papers_on_the_outputs_of_the_networks"),
    mutant("own slot kept in the k-NN loss", "losses.py",
           "valid = (row_labels >= 0) & (row != own_slot[:, None])",
           "valid = jnp.broadcast_to(row_labels >= 0, similarity.shape)",
           "losses::test_knn_golden_leaves_the_own_slot_out_of_both_sums"),
    mutant("sum outside of the log (SupCon)", "losses.py",
           "    return _knn_loss(\n        float(temperature), axis_name, unit(embeddings), labels, own_slot, "
           "lax.stop_gradient(memory), memory_labels\n    )",
           "    query = (unit(embeddings), labels, own_slot)\n"
           "    similarity, valid, positive = _score(query, lax.stop_gradient(memory), memory_labels, 0, temperature)\n"
           "    log_p = similarity - jax.nn.logsumexp(similarity, axis=1, where=valid, keepdims=True)\n"
           "    count = jnp.sum(positive, axis=1)\n"
           "    return -jnp.sum(jnp.where(positive, log_p, 0), axis=1) / jnp.maximum(count, 1), 1.0 * (count > 0)",
           "losses::test_knn_golden_at_temperature_one"),
    mutant("targets not stopped", "losses.py",
           "lax.stop_gradient(unit(targets))", "unit(targets)",
           "losses::test_instance_gradient_equals_finite_differences_and_stops_at_the_targets"),
    mutant("EMA turned round", "train_step.py",
           "target_params, 1.0 - rate)", "target_params, rate)",
           "train_step::test_target_follows_the_updated_network_and_keeps_no_statistics"),
    mutant("target network in evaluation mode", "train_step.py",
           'seen, train=True, mutable=["batch_stats"], method="embed"',
           'seen, train=False, mutable=["batch_stats"], method="embed"',
           "train_step::test_target_never_uses_running_statistics"),
    mutant("learning rate without warm-up", "schedules.py",
           "jnp.where(step < warmup_steps, warmup, cosine)", "cosine",
           "schedules::test_learning_rate_warms_up_linearly_then_follows_a_cosine_to_zero"),
    mutant("weight decay on biases", "experiment.py",
           "o.decay_all or p.ndim > 1", "True",
           "train_step_queue::test_weight_decay_on_everything_and_plain_momentum"),
    mutant("lambda ignored", "objective.py",
           'terms["instance_loss"] = loss + instance_weight * term', 'terms["instance_loss"] = loss + term',
           "train_step::test_lambda_weighs_the_instance_loss"),
    mutant("padding counted in evaluation", "evaluation.py",
           "parallel.gather(x[: part.stop - part.start], len(images))", "parallel.gather(x, len(images))",
           "evaluation::test_headline_is_plain_and_the_others_are_prefixed"),
    mutant("self left out by rank", "neighbors.py",
           "own = _own_rows(query_ids, gallery_ids, len(query))",
           "own = _own_rows(query_ids, gallery_ids, len(query))\n"
           "    if query_ids is not None:\n"
           "        own = np.argmax(query @ rows.T / np.linalg.norm(rows, axis=1), axis=1).astype(np.int32)",
           "neighbors::test_self_is_left_out_wherever_it_ranks"),
    mutant("ties by order of arrival", "neighbors.py",
           "tie_order=None if gallery_ids is None else np.asarray(gallery_ids)", "tie_order=None",
           "neighbors::test_ties_go_to_the_lower_id"),
    mutant("queue written before scoring", "train_step.py",
           "objective(out, targets, batch, memory, state.queue)",
           "objective(out, targets, batch, memory, state.queue and memory_lib.enqueue("
           "state.queue, targets, batch['label'], step=state.step, axis_name=axis_name))",
           "train_step_queue::test_losses_are_those_of_the_twins_on_the_outputs_of_the_networks[coins]"),
    mutant("queue not FIFO", "memory.py",
           "first = (step % size) * batch_size % size", "first = 0",
           "memory::test_queue_golden_first_in_first_out_round_the_end"),
    mutant("RNG restarted at resume", "train.py",
           "feed.epoch(epoch, step % run.steps_per_epoch)",
           "feed.epoch(epoch - start // run.steps_per_epoch, step % run.steps_per_epoch)",
           "faults::test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one"),
    mutant("checkpoint without memory", "checkpoint.py",
           'items["memory"] = _rows(memory)', "pass",
           "train::test_an_image_that_could_not_be_read_stays_without_a_label_on_any_devices[1]"),
    mutant("psum for pmean of gradients", "train_step.py",
           "lax.pmean((grads, batch_stats), axis_name)",
           "lax.psum(grads, axis_name), lax.pmean(batch_stats, axis_name)",
           "train_step::test_two_devices_take_the_mean_of_their_gradients"),
    mutant("random erasing keeps the rectangle", "data/augment.py",
           "& erase_mask(u[_ERASE], views.size)", "& ~erase_mask(u[_ERASE], views.size)",
           "augment::test_erased_pixels_are_zero_after_normalisation"),
    mutant("fine labels trained on as coarse", "data/sources.py",
           "label = self.levels[self.train_level].label", "label = self.levels[self.finest].label",
           "sources::test_digits_coarse_classes"),
)

OTHERS = (
    # Losses.
    mutant("k-NN loss without temperature", "losses.py",
           "similarity = matmul(embeddings, unit(rows).T) / temperature",
           "similarity = matmul(embeddings, unit(rows).T)",
           "losses::test_knn_golden_at_the_papers_temperature_by_default"),
    mutant("gradient of SupCon", "losses.py",
           "jnp.exp(jnp.minimum(similarity - log_positive[:, None], 0.0)), 0.0)",
           "1 / jnp.maximum(jnp.sum(positive, axis=1, keepdims=True), 1), 0.0)",
           "losses::test_knn_golden_gradient_is_that_of_nca_not_of_supcon"),
    mutant("empty slots counted", "losses.py",
           "valid = (row_labels >= 0) & (row != own_slot[:, None])", "valid = row != own_slot[:, None]",
           "losses::test_knn_ignores_rows_with_a_negative_label"),
    mutant("rows behind the last whole block forgotten", "losses.py",
           "    if rest:\n", "    if rest and not num_blocks:\n",
           "losses::test_knn_gradient_equals_the_direct_formulas"),
    mutant("instance loss divided by T * T", "losses.py",
           "(num_views * (num_views - 1))", "(num_views * num_views)",
           "losses::test_instance_golden_two_views"),
    mutant("label smoothing without the number of classes", "losses.py",
           "jnp.mean(jax.nn.log_softmax(logits), axis=-1)", "jnp.sum(jax.nn.log_softmax(logits), axis=-1)",
           "transfer::test_smoothed_labels"),
    mutant("own key not in the denominator", "losses.py",
           "log_sum = jnp.logaddexp(own, jax.nn.logsumexp(others, axis=1))",
           "log_sum = jax.nn.logsumexp(others, axis=1)",
           "losses_queue::test_golden"),
    mutant("MaskCon's weight turned round", "losses.py",
           "weight * soft + (1 - weight) * own", "(1 - weight) * soft + weight * own",
           "losses_queue::test_golden"),
    mutant("MaskCon's soft temperature ignored", "losses.py",
           "jnp.exp((nearness - nearest[:, None]) / soft_temperature)", "jnp.exp(nearness - nearest[:, None])",
           "losses_queue::test_against_float64_twins"),
    mutant("cosines without unit length", "cosine.py",
           "return x / jnp.sqrt(jnp.maximum(square, _SMALLEST_NORM**2))", "return x",
           "losses::test_instance_golden_four_views"),
    # The step.
    mutant("own slot not handed to the loss", "objective.py",
           'own_slot=batch["id"]', "own_slot=None",
           "train_step::test_losses_are_the_papers_on_the_outputs_of_the_networks"),
    mutant("no predictor", "objective.py",
           "self._by_view(out.prediction)", "self._by_view(out.projection)",
           "train_step::test_losses_are_the_papers_on_the_outputs_of_the_networks"),
    mutant("online network as its own target", "train_step.py",
           "objective(out, targets, batch, memory, state.queue)",
           "objective(out, out.projection, batch, memory, state.queue)",
           "train_step::test_losses_are_the_papers_on_the_outputs_of_the_networks"),
    mutant("mixture's weights turned round", "methods.py",
           "(weight, 1.0 - weight)", "(1.0 - weight, weight)",
           "train_step_queue::test_losses_are_those_of_the_twins_on_the_outputs_of_the_networks[coins]"),
    mutant("mixed images scored by one label", "objective.py",
           'term = batch["share"] * term + (1 - batch["share"]) * other', "term = term + 0 * other",
           "transfer::test_a_mixture_is_scored_by_both_labels"),
    mutant("running statistics lost", "train_step.py",
           "batch_stats=batch_stats,", "batch_stats=state.batch_stats,",
           "train_step::test_target_follows_the_updated_network_and_keeps_no_statistics"),
    mutant("same views at every step", "train_step.py",
           "key = jax.random.fold_in(rng, state.step)", "key = rng",
           "train_step::test_losses_are_the_papers_on_the_outputs_of_the_networks"),
    mutant("key seen as the query is", "train_step.py",
           "jax.random.fold_in(key, _KEY_VIEW)", "key",
           "train_step_queue::test_queries_and_keys_have_draws_of_their_own"),
    # Memory.
    mutant("memory not brought to unit length", "memory.py",
           "new = unit(momentum * old + (1.0 - momentum) * unit(lax.stop_gradient(embeddings)))",
           "new = momentum * old + (1.0 - momentum) * unit(lax.stop_gradient(embeddings))",
           "memory::test_golden_half_way_and_back_to_unit_length"),
    mutant("memory's momentum turned round", "memory.py",
           "momentum * old + (1.0 - momentum) *", "(1.0 - momentum) * old + momentum *",
           "memory::test_golden_momentum_weighs_the_old_row"),
    # Optimiser and schedules.
    mutant("boundary of a schedule one step late", "schedules.py",
           "jnp.asarray(step) >= jnp.asarray(boundaries, jnp.int32)",
           "jnp.asarray(step) > jnp.asarray(boundaries, jnp.int32)",
           "snca::test_steps_of_the_learning_rate_after_a_warm_up_and_under_jit"),
    mutant("EMA rate along a line", "schedules.py",
           "(jnp.cos(jnp.pi * progress) + 1.0) / 2.0", "(1.0 - progress)",
           "schedules::test_ema_rate_goes_from_its_base_to_one"),
    mutant("learning rate not scaled by the batch", "experiment.py",
           "base = o.learning_rate * self.config.train.batch_size / 256", "base = o.learning_rate",
           "snca::test_the_optimiser_takes_the_steps"),
    mutant("warm-up of the config ignored", "experiment.py",
           "total_steps=self.total_steps, warmup_steps=warmup_steps)", "total_steps=self.total_steps)",
           "schedules::test_the_configs_warm_up_comes_before_the_cosine"),
    mutant("layer decay from the stem up", "experiment.py",
           'updates["trunk"]}, reverse=True)', 'updates["trunk"]})',
           "transfer::test_rates_fall_from_the_head_to_the_stem"),
    # Neighbours and metrics.
    mutant("float32 not settled in float64", "settling.py",
           "        if len(row):\n", "        if False:\n",
           "neighbors::test_neighbours_nearer_than_float32_can_tell_are_in_the_order_of_float64"),
    mutant("group of the own row takes a place", "neighbors.py",
           "lax.top_k(largest, k + 1)", "lax.top_k(largest, k)",
           "neighbors::test_inside_jit_groups_with_the_own_row_or_with_padding_take_nobodys_place"),
    mutant("recall@k of k + 1 neighbours", "metrics.py",
           "hits[:, :k].any(axis=1)", "hits[:, : k + 1].any(axis=1)",
           "metrics::test_recall_golden"),
    mutant("votes of equal weight", "metrics.py",
           "vote = jnp.exp((similarity - similarity.max(axis=1, keepdims=True)) / temperature)",
           "vote = jnp.ones_like(similarity)",
           "metrics::test_vote_golden"),
    mutant("average precision with ranks from 2", "metrics.py",
           "np.mean(near_positive / near)", "np.mean(near_positive / (near + 1))",
           "metrics::test_average_precision_golden"),
    mutant("votes of another level", "evaluation.py",
           "train.labels[name][near]", "train.labels[min(train.labels)][near]",
           "evaluation::test_metrics_agree_with_scikit_learn"),
    mutant("k-means: empty cluster takes the nearest row", "kmeans.py",
           "np.argsort(-distance, kind=", "np.argsort(distance, kind=",
           "kmeans::test_an_empty_cluster_takes_the_row_farthest_from_its_centre"),
    mutant("probe: intercept penalised", "probe.py",
           "np.concatenate([weight[:-1], np.zeros((1, num_classes))])", "weight",
           "probe::test_scikit_learn_finds_the_same_classifier"),
    # Data.
    mutant("last batch of a split not evaluated", "data/sources.py",
           "range(0, len(images), batch_size)", "range(0, len(images) - batch_size + 1, batch_size)",
           "evaluation::test_headline_is_plain_and_the_others_are_prefixed"),
    mutant("held-out images trained on", "data/sources.py",
           '"train": records.take(~drawn)', '"train": records',
           "sources::test_holdout_comes_from_the_training_split"),
    mutant("fingerprint without labels", "data/sources.py",
           'in ((self.image, "u1"), *levels):', 'in ((self.image, "u1"),):',
           "sources::test_fingerprint_changes_with_the_data"),
    mutant("chosen classes renumbered one too high", "data/hierarchy.py",
           "np.searchsorted(present[name], label)", 'np.searchsorted(present[name], label, side="right")',
           "hierarchy::test_select"),
    mutant("same order in every epoch", "data/pipeline.py",
           "jax.random.PRNGKey(seed), _ORDER_KEY), epoch)", "jax.random.PRNGKey(seed), _ORDER_KEY), 0)",
           "pipeline::test_an_epochs_order_is_a_permutation_of_its_own_cut_to_whole_batches"),
    mutant("splits of a CSV swapped", "data/listing.py",
           "listed[split].append(Example", 'listed["test" if split == "train" else "train"].append(Example',
           "listing::test_a_csv_is_the_folder_that_it_lists"),
    mutant("EXIF orientation ignored", "data/images.py",
           "_rgb(PIL.ImageOps.exif_transpose(image))", "_rgb(image)",
           "images::test_an_image_lies_as_its_exif_says"),
    mutant("crops of any size", "data/crops.py",
           "areas = area * (scale[0] + draws[..., 0] * (scale[1] - scale[0]))", "areas = area * draws[..., 0]",
           "augment_laws::test_crop_boxes_keep_the_law"),
    mutant("flip with the other probability", "data/augment.py",
           "u[_FLIPPED] < views.flip", "u[_FLIPPED] >= views.flip",
           "augment::test_flip_probability"),
    mutant("hue turned one way only", "data/augment.py",
           "(2 * draw - 1) * strength", "draw * strength",
           "augment::test_jitter_strengths"),
    mutant("views of an image alike", "data/augment.py",
           "jnp.arange(num_views)", "jnp.zeros(num_views, jnp.int32)",
           "augment::test_views_differ_over_views_ids_and_keys"),
    mutant("normalisation without std", "data/augment.py",
           " / np.asarray(views.std, np.float32)", "",
           "augment::test_plain_view_normalises"),
    mutant("CutMix keeps the square", "data/mixing.py",
           "return 1.0 - inside.astype(jnp.float32)", "return inside.astype(jnp.float32)",
           "transfer::test_cutmix_pastes_a_square_and_counts_what_is_left"),
    # Networks.
    mutant("stride in the first stage", "models/resnet.py",
           "2 if stage > 1 and place == 0 else 1", "2 if place == 0 else 1",
           "models::test_stems_leave_the_first_stage_its_resolution"),
    mutant("squeeze-and-excitation without sigmoid", "models/regnet.py",
           "(x.shape[-1], nn.sigmoid)", "(x.shape[-1], nn.relu)",
           "trunks::test_squeeze_and_excitation_golden"),
    mutant("kernels' height and width swapped", "models/pretrained.py",
           "tensor.transpose(2, 3, 1, 0)", "tensor.transpose(3, 2, 1, 0)",
           "pretrained::test_logits_golden"),
    # Runs.
    mutant("memory not restored", "train.py",
           "(found[0], found[1], found[2]", "(found[0], memory, found[2]",
           "faults::test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one"),
    mutant("digest of a checkpoint not compared", "checkpoint.py",
           "        if differing:\n", "        if False:\n",
           "faults::test_what_is_not_what_was_saved_is_damaged"),
    mutant("worst checkpoint kept as the best", "checkpoint.py",
           'return metrics["map"] if', 'return -metrics["map"] if',
           "train::test_the_best_checkpoint_stays_the_best_after_a_resume"),
    mutant("SIGTERM ignored", "preemption.py",
           "yield lambda step: asked.is_set()", "yield lambda step: False",
           "faults::test_sigterm_is_remembered_and_its_handler_given_back"),
    mutant("lock not taken", "workdir.py",
           "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass",
           "faults::test_a_lock_is_held_until_its_run_ends"),
    mutant("another config's workdir resumed", "workdir.py",
           'changed = [line for line in differences if line.partition(":")[0] not in allowed]', "changed = []",
           "train::test_another_configs_workdir_is_refused_with_the_difference_and_left_alone"),
    mutant("other data not noticed", "workdir.py",
           "changed = sorted(split for split in fingerprints if started.get(split) != fingerprints[split])",
           "changed = []",
           "train::test_other_data_are_told_by_their_split"),
    mutant("log not cut at resume", "workdir.py",
           'if entry["step"] <= step]', "if entry]",
           "train::test_a_log_line_cut_short_by_a_kill_is_dropped"),
    mutant("unknown config keys accepted", "config.py",
           "        if key not in known:\n", "        if False:\n",
           "config::test_a_key_that_is_unknown_or_missing_is_named"),
    mutant("digest of a result not compared", "results.py",
           'if run.get("digest") != digest(', "if not digest(",
           "results::test_what_is_not_as_its_run_wrote_it_is_refused"),
)
# fmt: on


class Checkouts:
    """Copies of the checkout, one for each job, in which pytest runs."""

    def __init__(self, folder: pathlib.Path, jobs: int, *, slow: bool):
        self._markers = [] if not slow else ["-m", ""]
        self._running: set[subprocess.Popen] = set()
        self._free: queue.SimpleQueue[pathlib.Path] = queue.SimpleQueue()
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        self.paths = [folder / str(job) for job in range(jobs)]
        for path in self.paths:
            for file in filter(None, listed.stdout.split("\0")):
                if (ROOT / file).is_file():  # else it is deleted and not yet committed
                    (path / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / file, path / file)
            self._free.put(path)

    def python(self, path: pathlib.Path, *arguments: str, limit: float) -> tuple[int | None, str]:
        """(exit status, output) of a Python whose modules are the copy's; the status is None past `limit` seconds."""
        # In front of the editable install, for the command lines that tests start too.
        modules = os.pathsep.join(str(path / name) for name in ("", "experiments", "tests"))
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=path,
                env=os.environ | {"PYTHONPATH": modules},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
            try:
                status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
                kill(process)
            self._running.discard(process)
            said.seek(0)
            return status, said.read()

    def pytest(self, path: pathlib.Path, tests: list[str], *, jobs: int = 0, limit: float) -> tuple[int | None, str]:
        options = ["-x", "-q", f"-n{jobs}", "-p", "no:cacheprovider", f"--basetemp={path}_tmp", *self._markers]
        return self.python(path, "-m", "pytest", *options, *tests, limit=limit)

    def run(self, mutant: Mutant) -> tuple[str, str]:
        """("killed", "SURVIVED" or "ERROR", what to say of it)."""
        path = self._free.get()
        source = path / "grafit_jax" / mutant.file
        text, began = source.read_text(), time.perf_counter()
        try:
            source.write_text(text.replace(mutant.old, mutant.new))
            status, said = self.pytest(path, list(mutant.tests), limit=LIMIT)
        finally:
            source.write_text(text)
            self._free.put(path)
        seconds = f"{time.perf_counter() - began:.0f} s"
        if status is None:
            return "killed", f"by timeout ({LIMIT} s)"
        if status == 0:
            return "SURVIVED", f"{' '.join(mutant.tests)} ({seconds})"
        failed = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", said, re.MULTILINE)
        if status != 1 or failed is None:
            return "ERROR", f"pytest ended with status {status} ({last_line(said)})"
        return "killed", f"{failed[1]} ({seconds})"

    def stop(self) -> None:
        for process in list(self._running):
            kill(process)


def kill(process: subprocess.Popen) -> None:
    """With all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(said: str) -> str:
    return next(reversed(said.strip().splitlines()), "no output")


def check(checkouts: Checkouts, mutants: list[Mutant]) -> None:
    """Ends the program with one line unless the faults can be applied and the tests pass without them."""
    path = checkouts.paths[0]
    for m in mutants:
        count = (path / "grafit_jax" / m.file).read_text().count(m.old)
        if count != 1:
            sys.exit(f"{m.name!r}: old text found {count} times in grafit_jax/{m.file}; expected once; update the list")
    _, imported = checkouts.python(path, "-c", "import grafit_jax; print(grafit_jax.__file__)", limit=LIMIT)
    if last_line(imported) != str(path / "grafit_jax" / "__init__.py"):
        sys.exit(f"the copy in {path} is not what is tested: found {last_line(imported)}")
    print(f"testing {last_line(imported)}", flush=True)
    tests = sorted({test for m in mutants for test in m.tests})
    began, jobs = time.perf_counter(), len(checkouts.paths)
    status, said = checkouts.pytest(path, tests, jobs=jobs if jobs > 1 else 0, limit=LIMIT_OF_ALL)
    if status != 0:
        failed = re.findall(r"^(?:(?:FAILED|ERROR) (?=tests/)|ERROR: )(.+)", said, re.MULTILINE) or [last_line(said)]
        sys.exit(f"the tests do not pass without a fault: pytest ended with status {status} ({failed[0]})")
    print(f"{len(tests)} tests pass without a fault ({time.perf_counter() - began:.0f} s)", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="names of faults, separated by commas")
    parser.add_argument("--jobs", type=int, default=2, help="faults tested at a time")
    parser.add_argument("--slow", action="store_true", help="tests of the slow tier too")
    options = parser.parse_args()
    mutants = [*REQUIRED, *OTHERS]
    if options.only:
        unknown = set(options.only.split(",")) - {m.name for m in mutants}
        if unknown:
            sys.exit(f"unknown faults: {', '.join(sorted(unknown))}; expected names of {__file__}")
        mutants = [m for m in mutants if m.name in options.only.split(",")]
    began, outcomes = time.perf_counter(), dict[str, str]()
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        checkouts = Checkouts(pathlib.Path(folder), options.jobs, slow=options.slow)
        check(checkouts, mutants)
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            futures = {pool.submit(checkouts.run, m): m.name for m in mutants}
            try:
                for future in concurrent.futures.as_completed(futures):
                    name = futures[future]
                    outcomes[name], said = future.result()
                    print(f"{outcomes[name]:8}  {name}: {said}", flush=True)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                checkouts.stop()
    good = True
    for group, members, share in (("required", REQUIRED, 0.0), ("other", OTHERS, MAY_SURVIVE)):
        found = [outcomes[m.name] for m in members if m.name in outcomes]
        killed, survived = found.count("killed"), found.count("SURVIVED")
        print(f"{killed} of {len(found)} {group} faults killed, {survived} survived")
        good &= survived <= share * len(found) and "ERROR" not in found
    print(f"{time.perf_counter() - began:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
