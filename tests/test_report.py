"""Tables and pictures: their numbers are the runs', and README's are those that are recorded."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from study import layout, recording, render, reproduction, tables

from grafit_jax.commands import train
from grafit_jax.data import sources
from grafit_jax.data.records import Records, two_levels
from grafit_jax.errors import UserError
from grafit_jax.report import pictures
from grafit_jax.report.tables import plain_table
from grafit_jax.runs import results
from helpers.command_lines import ROOT

TINY = """
from grafit_jax import config_files
from grafit_jax import config as config_lib


def get_config(arg=None):
    arg = config_files.parse_arg(arg, method="baseline", seed=0)
    c = config_lib.default()
    c.update_from_flattened_dict({
        "method": arg.method, "seed": arg.seed, "model.trunk": "resnet8", "model.stem": "patch2",
        "model.head_hidden_dim": 32, "model.embed_dim": 16, "views.size": 8, "views.mean": (0.3,), "views.std": (0.4,),
        "train.epochs": 1, "train.batch_size": 64, "eval.layers": ("trunk",),
    })
    return c
"""


def result(method, seed=0, **metrics):
    run = {"train_seconds": 90.0, "views_per_image": 2}
    return {"row": method, "method": method, "seed": seed, "metrics": metrics, "run": run}


def test_a_tables_cells_are_means_and_sample_deviations_in_percent():
    recorded = [
        result("grafit", map=0.5, r=0.25),
        result("grafit", 1, map=0.6, r=0.25),
        {"method": "raw_pixels", "seed": 0, "metrics": {"map": 0.123}, "run": {}},
    ]
    del recorded[0]["run"]["train_seconds"]  # of the others the mean is shown
    # mean of 50 and 60, and sqrt((5^2 + 5^2) / 1) = 7.07
    assert layout.markdown_table(recorded, {"map": "mAP", "r": "R@1"}, {"grafit": " (ours)"}).splitlines() == [
        "| method | mAP | R@1 | seeds | views an image | training |",
        "|---|---|---|---|---|---|",
        "| `grafit` (ours) | 55.0 ± 7.1 | 25.0 ± 0.0 | 2 | 2 | 90 s |",
        "| `raw_pixels` | 12.3 | - | 1 | - | - |",
    ]


def test_a_benchmark_renders_its_own_numbers():
    facts = {"device": "1 x cpu", "processor": "2 cores", "python": "3.11", "packages": {"jax": "1"}, "revision": "abc"}
    line = {"work": "w", "seconds": 1.234, "peer": "p", "peer_seconds": 2.468, "ratio": 0.5, "environment": facts}
    grown = {"work": "g", "sizes": [1, 2], "curve_s": [0.5, 0.25], "exponent": -1.0, "seconds_per_unit": -0.25}
    grown |= {"seconds_at_zero": 0.75, "environment": facts}
    shares = {"work": "s", "share": 0.25, "shares": {"copy": 0.25, "convolution": 0.75}, "environment": facts}
    alone = {"work": "v", "seconds": 0.0361, "peak_gigabytes": 0.26, "environment": facts}
    got = render.render_benchmark([line | {"goal": 1.2}, grown, shares, line | {"goal_s": 8.0}, alone])
    assert got.splitlines() == [
        "| work | seconds | peer | its seconds | ratio | goal | memory |",
        "|---|---|---|---|---|---|---|",
        "| w | 1.23 | p | 2.47 | 0.50 | 1.2 x |  |",
        "| w | 1.23 | p | 2.47 | 0.50 | 8 s |  |",
        "| v | 0.0361 |  |  |  |  | 0.3 GB |",
        "",
        "| measured | at | seconds | exponent | seconds a unit, straight line | seconds at 0 |",
        "|---|---|---|---|---|---|",
        "| g | 1, 2 | 0.5, 0.25 | -1.00 | -0.25 | 0.75 |",
        "",
        "s: 25.0% (convolution 75.0%, copy 25.0%).",
        "",
        "1 x cpu, 2 cores; Python 3.11, jax 1; revision abc.",
    ]
    plain = render.render_benchmark([alone | {"goal": None}], plain_table).splitlines()
    assert plain == ["work  seconds  memory", "v     0.0361   0.3 GB", "", got.splitlines()[-1]]


def test_a_block_is_replaced_and_nothing_else():
    text = "before\n<!-- a -->\nold\n<!-- /a -->\n<!-- ab -->\nkept\n<!-- /ab -->\n"
    got = layout.replace_block(text, "a", r"new \1 | line")
    assert got == text.replace("old", r"new \1 | line")
    assert layout.replace_block(got, "a", "old") == text
    with pytest.raises(UserError, match="no block <!-- b --> "):
        layout.replace_block(text, "b", "")


def test_pages_show_what_is_recorded(tmp_path):
    documents = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    for page in ("README.md", *documents, "experiments/results"):
        target = tmp_path / page
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / page).is_dir() else shutil.copy
        copy(ROOT / page, target)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shown = render.blocks(tmp_path).keys()
    assert shown >= {*tables.TABLES, "claims", "maskcon_rows", "benchmark_retrieval", "benchmark_train"}
    texts = "".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert [name for name in shown if f"<!-- {name} -->" not in texts] == []
    render.write_pages(tmp_path)
    for page in ("README.md", *documents):
        said = "run experiments/reproduce.py --record"
        assert (tmp_path / page).read_text() == (ROOT / page).read_text(), said
    # And a page that says something else is put right.
    for page in ("README.md", "docs/performance.md"):
        (tmp_path / page).write_text((ROOT / page).read_text().replace("grafit", "other"))
    render.write_pages(tmp_path)
    assert "| `grafit` (k-NN" in (tmp_path / "README.md").read_text()
    assert "| grafit step, resnet18" in (tmp_path / "docs" / "performance.md").read_text()


RECORDED = [name for name in tables.TABLES if render.results_path(ROOT, name).exists()]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_rows_share_everything_but_method_and_seed(name):
    recorded = recording.read(render.results_path(ROOT, name))
    rows = {row.name: row for row in tables.TABLES[name].rows}
    # Every row of a table was trained with the same data, views and budget. Its config may differ in what the row's own
    # overrides say, and the two protocols in how theirs are.
    own = {
        "method", "seed", "data.data_dir", "data.train_level", "loss.temperature", "model.head_batch_norm",
        "clusterfit.source", "clusterfit.num_clusters", "model.pretrained", "queue.size", "ema.final",
        "model.head_init",
    }  # fmt: skip
    trained = [r for r in recorded if r["method"] != tables.RAW_PIXELS]
    shared = [
        {k: v for k, v in recording.comparable(r["config"]).items()
         if k not in own | {*rows[r["row"]].overrides} and k[:10] != "key_views."}
        for r in trained
    ]  # fmt: skip
    whole = max(shared, key=len)
    assert all(all(whole[k] == v for k, v in config.items()) for config in shared) and whole
    for protocol in ("paper", "maskcon"):
        of_it = [r for r in trained if recording.protocol(r["method"]) == protocol and not rows[r["row"]].overrides]
        theirs = (
            "loss.temperature", "model.head_batch_norm", "model.head_init", "queue.size", "ema.final",
            "key_views.flip_prob",
        )  # fmt: skip
        assert len({tuple(r["config"].get(key) for key in theirs) for r in of_it}) <= 1


def test_a_table_of_two_protocols_says_which_row_is_of_which():
    for name, table in tables.TABLES.items():
        points = reproduction.points(
            table, pathlib.Path("runs"), root=ROOT, seeds=[0],
            source=reproduction.Source(pretrained="w.pth" if table.pretrained else ""),
        )  # fmt: skip
        protocols = {recording.protocol(point.flat["method"]) for point in points} - {""}
        assert len(protocols) == 1 or "protocol" in table.facts, name


def test_rows_of_two_protocols_are_told_apart():
    def of(method, pretrained, policy):
        config = {"method": method, "model.pretrained": pretrained, "views.autoaugment": policy}
        return result(method, map=0.5) | {"config": config}

    table = tables.TABLES["maskcon_cpu"]
    found = [of("grafit", "", True), of("grafit_maskcon", "w.pth", "maskcon")]
    assert layout.markdown_table(found, {"map": "mAP"}, {}, table.facts).splitlines()[2:] == [
        "| `grafit` | paper | from scratch | torchvision's, black | 50.0 | 1 | 2 | 90 s |",
        "| `grafit_maskcon` | maskcon | pretrained | MaskCon's, grey | 50.0 | 1 | 2 | 90 s |",
    ]


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("maskcon_cifar100", "w.pth", r"start from scratch: found w\.pth of weights, want no --pre"),
        ("maskcon_cars_pretrained", "", r"start pretrained: found no file of weights, want --pretrained=FILE"),
    ],
)
def test_a_table_says_what_its_trunks_start_from(tmp_path, name, file, message):
    with pytest.raises(UserError, match=message):
        source = reproduction.Source(pretrained=file)
        reproduction.points(tables.TABLES[name], tmp_path / "runs", root=ROOT, source=source)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_not_complete_is_no_result(tmp_path):
    with pytest.raises(UserError, match=r"found no finished run \(no metrics\.json\)"):
        results.collect(tmp_path)


@pytest.mark.slow
def test_a_table_trains_what_is_missing_reads_what_is_there_and_draws(tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(TINY)
    table = tables.Table(
        tables.by_method("tiny.py", "", [tables.RAW_PIXELS, "baseline"]), {"map": "mAP"}, ("baseline", "baseline")
    )
    points = reproduction.points(table, tmp_path / "runs", root=tmp_path)
    first = [reproduction.result(point, {}) for point in points]
    assert [(r["method"], r["seed"]) for r in first] == [("raw_pixels", 0), ("baseline", 0)]
    assert first[1]["metrics"] == json.loads((tmp_path / "runs" / "baseline" / "metrics.json").read_text())

    # Raw pixels by scikit-learn: cosine ranking of the other test images, mean over all queries.
    test = sources.load(source="digits")["test"]
    pixels = test.image.reshape(len(test), -1).astype(np.float64)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    others = ~np.eye(len(test), dtype=bool)
    similarity, same = pixels @ pixels.T, test.label[:, None] == test.label
    expected = [average_precision_score(same[q][others[q]], similarity[q][others[q]]) for q in range(len(test))]
    np.testing.assert_allclose(first[0]["metrics"]["map"], np.mean(expected), rtol=1e-4)

    before = (tmp_path / "runs" / "baseline" / "config.json").read_text()
    monkeypatch.setattr(train, "train", None)  # nothing is left to be trained
    assert reproduction.result(points[1], {}) == first[1]
    (tmp_path / "runs" / "baseline" / "config.json").write_text(
        (tmp_path / "runs" / "baseline" / "config.json").read_text().replace('"seed": 0', '"seed": 7')
    )
    with pytest.raises(UserError, match=r"another config \(seed: 7 -> 0\)"):
        reproduction.result(points[1], {})
    (tmp_path / "runs" / "baseline" / "config.json").write_text(before)
    assert reproduction.draw(table, tmp_path / "runs").read_bytes().startswith(b"\x89PNG")


def test_gallery_frames_tell_fine_from_coarse_and_leave_the_query_out(tmp_path, monkeypatch):
    # Images numbered by their pixels, on a circle: each one's nearest are its neighbours in number.
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
    assert [query % 3 for (query, _), *_ in rows] == [0, 1, 2]  # a query of each class
    for (query, _), *near in rows:
        assert {other for other, _ in near} == {(query - 1) % n, (query + 1) % n}
        for other, frame in near:
            kind = {0: "fine"}.get((other - query) % 3, "coarse" if {other % 3, query % 3} == {0, 1} else "neither")
            assert frame == kind
