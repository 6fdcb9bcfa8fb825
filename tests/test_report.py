"""Tables and pictures show the numbers of the runs, and the README shows the recorded results."""

import collections
import dataclasses
import pathlib
import re
import shutil

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from study import layout, recording, render, reproduction, row_sets, tables
from study.rows import Table

from grafit_jax import config as config_lib
from grafit_jax import methods
from grafit_jax.data import sources
from grafit_jax.data.records import Records, two_levels
from grafit_jax.errors import UserError
from grafit_jax.report import pictures
from grafit_jax.runs import results
from grafit_jax.runs.tables import plain_table
from helpers.command_lines import ROOT


def result(method, seed=0, **metrics):
    run = {"train_seconds": 90.0, "views_per_image": 2}
    return {"row": method, "method": method, "seed": seed, "metrics": metrics, "run": run}


def named(result):
    return [f"`{result['method']}`"]


def test_table_cells_are_means_and_sample_standard_deviations_in_percent():
    recorded = [
        result("grafit", map=0.5, r=0.25),
        result("grafit", 1, map=0.6, r=0.25),
        {"method": "raw_pixels", "seed": 0, "metrics": {"map": 0.123}, "run": {}},
        {"method": "baseline", "seed": 0, "metrics": {"map": 0.1}, "run": {}},
        result("baseline", 1, map=0.1),  # the only one that was timed
    ]
    # mean of 50 and 60, and sqrt((5^2 + 5^2) / 1) = 7.07
    assert layout.markdown_table(recorded, ["method"], named, {"map": "mAP", "r": "R@1"}).splitlines() == [
        "| method | mAP | R@1 | training |",
        "|---|---|---|---|",
        "| `grafit` | 55.0 ± 7.1 | 25.0 ± 0.0 | 2 × 90 s |",
        "| `raw_pixels` | 12.3 | – | – |",
        "| `baseline` | 10.0 ± 0.0 | – | 2 seeds |",
    ]


def test_a_table_has_a_row_for_every_layer_that_was_evaluated():
    recorded = [
        result("grafit", **{"map": 0.5, "projector/map": 0.25}),
        result("baseline", **{"map": 0.75}),
    ]
    got = layout.markdown_table(
        recorded, ["method"], named, {"map": "mAP"}, "layer", layout.at_layers(("trunk", "projector"))
    )
    assert got.splitlines() == [
        "| method | layer | mAP | training |",
        "|---|---|---|---|",
        "| `grafit` | trunk | 50.0 | 90 s |",
        "| `grafit` | projector | 25.0 | 90 s |",
        "| `baseline` | trunk | 75.0 | 90 s |",
    ]


def test_clusters_are_a_table_of_the_rows_that_measured_them():
    without = result("grafit_fc", map=0.5)
    measured = result("grafit", **{"cluster_ari": 0.5, "within/cluster_ari": 0.25, "projector/cluster_ari": 0.75})
    baseline = result("baseline", **{"cluster_ari": 0.1, "projector/cluster_ari": 0.2})  # of no loss
    got = render.clusters({"quickstart": [without], "grocery": [without, measured, baseline]})
    assert got.splitlines() == [
        "`grocery`:",
        "",
        "| method | layer | accuracy | ARI | NMI | accuracy within | ARI within | training |",
        "|---|---|---|---|---|---|---|---|",
        "| `grafit` | trunk | – | 50.0 | – | – | 25.0 | 90 s |",
        "| `grafit` | projector | – | 75.0 | – | – | – | 90 s |",
        "| `baseline` | trunk | – | 10.0 | – | – | – | 90 s |",
    ]
    assert render.clusters({"grocery": [without]}) == ""


def test_settings_that_most_rows_share_are_stated_once():
    def of(method, views, **config):
        return result(method) | {"config": config, "run": {"views_per_image": views}}

    facts = {"λ": lambda config: f"= {config['weight']}", "trained on": lambda config: config["level"]}
    found = [
        of("baseline", 1, weight=1, level="coarse"),
        of("grafit", 2, weight=1, level="coarse"),
        of("grafit", 2, weight=4, level="fine"),
        of("byol", 2, weight=1, level="fine"),
        {"method": "raw_pixels", "run": {}},  # no config
    ]
    found[2]["run"]["views_per_image"] = 4  # a method's rows may differ
    name, shared = layout.row_names(found, {"byol": " (no labels)"}, facts)
    # Three of four have λ = 1; no level has more than half.
    assert shared == (
        "Unless a row says otherwise: λ = 1. Views of an image per step: 2; 1 for `baseline`, trained on coarse; "
        "4 for `grafit`, λ = 4, trained on fine."
    )
    assert [name(each) for each in found] == [
        ("`baseline`, trained on coarse",),
        ("`grafit`, trained on coarse",),
        ("`grafit`, λ = 4, trained on fine",),
        ("`byol` (no labels), trained on fine",),
        ("`raw_pixels`",),
    ]
    _, shared = layout.row_names(found[:2], {}, facts)
    assert shared == "All rows: λ = 1, trained on coarse. Views of an image per step: 1; 2 for `grafit`."
    assert layout.row_names(found[4:], {}, facts)[1] == ""


def test_benchmark_tables():
    facts = {"device": "1 x cpu", "processor": "2 cores", "python": "3.11", "packages": {"jax": "1"}, "revision": "abc"}
    line = {"work": "w", "seconds": 1.234, "peer": "p", "peer_seconds": 2.468, "ratio": 0.5, "environment": facts}
    grown = {"work": "g", "sizes": [1, 2], "curve_s": [0.5, 0.25], "exponent": -1.0, "seconds_per_unit": -0.25}
    grown |= {"seconds_at_zero": 0.75, "environment": facts}
    shares = {"work": "s", "share": 0.25, "shares": {"copy": 0.25, "convolution": 0.75}, "environment": facts}
    memory_only = {"work": "v", "seconds": 0.0361, "peak_gigabytes": 0.26, "environment": facts}
    got = render.render_benchmark([line | {"goal": 1.2}, grown, shares, line | {"goal_s": 8.0}, memory_only])
    assert got.splitlines() == [
        "| work | seconds | peer | ratio | goal | memory |",
        "|---|---|---|---|---|---|",
        "| w | 1.23 | p: 2.47 s | 0.50 | 1.2 x |  |",
        "| w | 1.23 | p: 2.47 s | 0.50 | 8 s |  |",
        "| v | 0.0361 |  |  |  | 0.3 GB |",
        "",
        "| work | sizes | seconds | exponent | seconds per unit (linear fit) | seconds at 0 |",
        "|---|---|---|---|---|---|",
        "| g | 1, 2 | 0.5, 0.25 | -1.00 | -0.25 | 0.75 |",
        "",
        "s: 25.0% (convolution 75.0%, copy 25.0%).",
        "",
        "1 x cpu, 2 cores; Python 3.11, jax 1; revision abc.",
    ]
    plain = render.render_benchmark([memory_only | {"goal": None}], plain_table).splitlines()
    assert plain == ["work  seconds  memory", "v     0.0361   0.3 GB", "", got.splitlines()[-1]]


def test_only_the_named_block_is_replaced():
    text = "before\n<!-- a -->\nold\n<!-- /a -->\n<!-- ab -->\nkept\n<!-- /ab -->\n"
    got = layout.replace_block(text, "a", r"new \1 | line")
    assert got == text.replace("old", r"new \1 | line")
    assert layout.replace_block(got, "a", "old") == text
    with pytest.raises(UserError, match="found no block <!-- b --> "):
        layout.replace_block(text, "b", "")


def test_pages_show_the_recorded_results(tmp_path):
    documents = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    for page in ("README.md", *documents, "experiments/results"):
        target = tmp_path / page
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / page).is_dir() else shutil.copy
        copy(ROOT / page, target)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shown = render.blocks(tmp_path).keys()
    assert shown >= {*RECORDED, "claims", "maskcon_rows", "benchmark_retrieval", "benchmark_train"}
    texts = "".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert [name for name in shown if f"<!-- {name} -->" not in texts] == []
    render.write_pages(tmp_path)
    for page in ("README.md", *documents):
        remedy = "run experiments/reproduce.py --record"
        assert (tmp_path / page).read_text() == (ROOT / page).read_text(), remedy
    # A table without results is empty.
    (tmp_path / "experiments/results/transfer.jsonl").unlink()
    render.write_pages(tmp_path)
    assert "<!-- transfer -->\n<!-- /transfer -->" in (tmp_path / "docs/results.md").read_text()
    # A page with other numbers is corrected.
    for page in ("README.md", "docs/performance.md"):
        (tmp_path / page).write_text((ROOT / page).read_text().replace("grafit", "other"))
    render.write_pages(tmp_path)
    assert "| `grafit` (k-NN + instance loss) |" in (tmp_path / "README.md").read_text()
    assert "| grafit step, resnet18" in (tmp_path / "docs" / "performance.md").read_text()


RECORDED = [name for name in tables.TABLES if render.results_path(ROOT, name).exists()]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_rows_differ_only_in_method_and_seed(name):
    recorded = recording.read(render.results_path(ROOT, name))
    rows = {row.name: row for row in tables.TABLES[name].rows}
    # All rows of a table with the same preset were trained with the same data, views and budget. The config of a row
    # may differ in its overrides and in the keys of its protocol.
    own = {
        "method", "seed", "data.data_dir", "data.train_level", "loss.temperature", "model.head_batch_norm",
        "clusterfit.source", "clusterfit.num_clusters", "model.pretrained", "queue.size", "ema.final",
        "model.head_init", *methods.METHODS["grafit_plus"].recipe,
    }  # fmt: skip
    trained = [r for r in recorded if r["method"] != recording.RAW_PIXELS]
    of_preset = collections.defaultdict(list)
    for r in trained:
        row, config = rows[r["row"]], recording.comparable(r["config"])
        kept = {k: v for k, v in config.items() if k not in own | {*row.overrides} and k[:10] != "key_views."}
        of_preset[re.sub("method=[^,]*", "", row.arg)].append(kept)
    for shared in of_preset.values():
        whole = max(shared, key=len)
        assert all(all(whole[k] == v for k, v in config.items()) for config in shared) and whole
    default = config_lib.flatten(config_lib.default())  # older results lack newer keys
    for protocol in ("paper", "maskcon"):
        of_it = [r for r in trained if recording.protocol(r["method"]) == protocol and not rows[r["row"]].overrides]
        of_it = [r for r in of_it if r["method"] not in row_sets.LATER]  # with temperatures of their own
        theirs = (
            "loss.temperature", "model.head_batch_norm", "model.head_init", "queue.size", "ema.final",
            "key_views.flip_prob",
        )  # fmt: skip
        assert len({tuple(r["config"].get(key, default[key]) for key in theirs) for r in of_it}) <= 1


def test_a_table_of_two_protocols_has_a_protocol_column():
    for name, table in tables.TABLES.items():
        points = reproduction.points(
            table, pathlib.Path("runs"), root=ROOT, seeds=[0],
            pretrained="w.pth" if table.pretrained else "",
        )  # fmt: skip
        protocols = {recording.protocol(point.flat["method"]) for point in points} - {""}
        assert len(protocols) == 1 or "protocol" in table.facts, name


def test_a_row_states_its_protocol():
    def of(method, pretrained, policy):
        config = {"method": method, "model.pretrained": pretrained, "views.autoaugment": policy}
        return result(method, map=0.5) | {"config": config}

    table = tables.TABLES["maskcon_cpu"]
    found = [of("grafit", "", True), of("grafit_maskcon", "w.pth", "maskcon")]
    name, _ = layout.row_names(found, table.notes, table.facts)
    assert layout.markdown_table(found, ["method"], name, {"map": "mAP"}).splitlines()[2:] == [
        "| `grafit`, protocol paper, trunk from scratch, AutoAugment of torchvision (black) | 50.0 | 90 s |",
        "| `grafit_maskcon`, protocol maskcon, trunk pretrained, AutoAugment of MaskCon (grey) | 50.0 | 90 s |",
    ]


def test_a_table_of_one_layer_names_it_below():
    environment = {"device": "d", "processor": "p", "python": "3", "packages": {"jax": "1"}, "revision": "r"}
    run = environment | {"train_images": 1000, "test_images": 5, "data_fingerprint": {"train": "a", "test": "b"}}
    found = [{"row": "grafit", "method": "grafit", "seed": 0, "metrics": {"map": 0.5, "projector/map": 0.1}, "run": run,
              "config": {}}]  # fmt: skip
    table = Table((), {"map": "mAP"})
    both, trunk = (render.render(dataclasses.replace(table, layers=layers), found).splitlines()
                   for layers in (("trunk", "projector"), ("trunk",)))  # fmt: skip
    assert len(both) == len(trunk) + 1 and trunk[2] == "| `grafit` | 50.0 | – |"
    said = "1,000 training and 5 test images; d, p; Python 3, jax 1; revision r."
    assert (both[-1], trunk[-1]) == (f"In percent. {said}", f"In percent. Metrics at the trunk. {said}")
    assert render.render_benchmark([]) == ""


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", "hf:timm/resnet18.tv_in1k"), ("w.pth", "w.pth")],
)
def test_a_table_with_pretrained_trunks_has_its_own_weights_or_those_given(given, expected):
    points = reproduction.points(
        tables.TABLES["maskcon_cars_pretrained"], pathlib.Path("runs"), root=ROOT, pretrained=given
    )
    assert {point.config.model.pretrained for point in points} == {expected}
    assert points[0].name == "frozen"
    with pytest.raises(
        UserError, match=r"found --pretrained=w\.pth for a table with trunks from scratch; remove --pre"
    ):
        reproduction.points(tables.TABLES["maskcon_cifar100"], pathlib.Path("runs"), root=ROOT, pretrained="w.pth")


def test_an_incomplete_run_has_no_result(tmp_path):
    with pytest.raises(UserError, match=r"found no finished run \(no metrics\.json\)"):
        results.collect(tmp_path)


def test_raw_pixels_are_ranked_as_by_scikit_learn(tmp_path):
    # Cosine ranking of the other test images, mean over all queries.
    [point] = reproduction.points(tables.TABLES["quickstart"], tmp_path, root=ROOT, only=[recording.RAW_PIXELS])
    found = reproduction.result(point, [])
    test = sources.load(source="digits")["test"]
    pixels = test.image.reshape(len(test), -1).astype(np.float64)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    others = ~np.eye(len(test), dtype=bool)
    similarity, same = pixels @ pixels.T, test.label[:, None] == test.label
    expected = [average_precision_score(same[q][others[q]], similarity[q][others[q]]) for q in range(len(test))]
    np.testing.assert_allclose(found["metrics"]["map"], np.mean(expected), rtol=1e-4)


def test_a_table_draws_its_gallery(tmp_path, trained_once):
    (tmp_path / "grafit").symlink_to(trained_once)
    assert reproduction.draw(Table((), {}, ("grafit",)), tmp_path).read_bytes().startswith(b"\x89PNG")


def test_gallery_frames_distinguish_fine_and_coarse_and_exclude_the_query(tmp_path, monkeypatch):
    # Images on a circle, numbered by their pixel values; the nearest images have the adjacent numbers.
    n = 12
    records = Records(
        image=np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8),
        levels=two_levels(np.arange(n) % 3, (np.arange(n) % 3 == 2).astype(int), "abc", ["ab", "c"]),
    )  # fmt: skip
    angle = np.arange(n) * 2 * np.pi / n + np.arange(n) * 1e-3
    drawn = []
    monkeypatch.setattr(pictures, "_draw", lambda ax, image, frame: drawn.append((int(image[0, 0, 0]), frame)))
    pictures.gallery(tmp_path / "g.png", records, {"x": np.stack([np.cos(angle), np.sin(angle)], 1)}, rows=3, k=2)
    rows = [drawn[i : i + 3] for i in range(0, len(drawn), 3)]
    assert [query % 3 for (query, _), *_ in rows] == [0, 1, 2]  # one query per class
    for (query, _), *near in rows:
        assert {other for other, _ in near} == {(query - 1) % n, (query + 1) % n}
        for other, frame in near:
            kind = {0: "fine"}.get((other - query) % 3, "coarse" if {other % 3, query % 3} == {0, 1} else "neither")
            assert frame == kind
