"""The tables that `experiments/reproduce.py` makes: which runs each needs, and how it is shown."""

import dataclasses
import importlib.util
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from grafit_jax import environment, evaluation, experiment, methods, report, targets, train, workdir
from grafit_jax.data import sources
from grafit_jax.errors import UserError
from grafit_jax.report import Result

# The control without a network: the pixels themselves as embeddings.
RAW_PIXELS = "raw_pixels"
# Whose features ClusterFit clusters.
CLUSTERED = "baseline"

_NOTES = {
    "selfcon": " (MoCo, no labels)",
    "supcon": " (SupCon over the queue)",
    "supce": " (coarse cross-entropy)",
    "grafit_maskcon": " (w supcon + (1 − w) selfcon)",
    "coins": " (w supce + (1 − w) selfcon)",
    "maskcon": " (soft labels over the queue)",
    "raw_pixels": " (no training)",
    "baseline": " (coarse cross-entropy)",
    "baseline_mlp": " (control: cross-entropy through Grafit's projector)",
    "byol": " (no labels)",
    "grafit": " (k-NN + instance loss)",
    "grafit_fc": " (cross-entropy + instance loss)",
    "snca": " (k-NN loss alone, through a linear projector)",
    "snca_plus": " (k-NN loss alone)",
    "clusterfit": " (cross-entropy on clusters of `baseline`'s features)",
    "clusterfit_plus": " (the same through Grafit's projector)",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: one config file, several methods, the seeds of each.

    Attributes:
      config: the config file, from the root of the repository.
      arg: what stands behind its colon beside method and seed.
      seeds: method -> how many seeds, in the order of the rows.
      columns: metric -> heading; the headline first.
      gallery: two methods whose neighbours are drawn side by side, or none.
      facts: heading -> what a run's config says, in columns behind the methods' names.
      pretrained: whether its trunks start from a file of weights, which is given when it is run.
      train_levels: the levels of labels that each method is trained on, one after the other; none: the config's.
    """

    config: str
    arg: str
    seeds: Mapping[str, int]
    columns: Mapping[str, str]
    gallery: tuple[str, ...] = ()
    facts: Mapping[str, Callable[[Mapping[str, Any]], str]] = dataclasses.field(default_factory=dict)
    pretrained: bool = False
    train_levels: tuple[str, ...] = ()


_COLUMNS = {
    "map": "**fine mAP**",
    "recall@1": "R@1",
    "knn_top1": "fine k-NN",
    "coarse/knn_top1": "coarse k-NN",
}
_WITH_PROJECTOR = _COLUMNS | {
    "projector/map": "fine mAP, projector",
    "projector/recall@1": "R@1, projector",
    "projector/knn_top1": "fine k-NN, projector",
}
_RECALL = {f"recall@{k}": f"R@{k}" for k in (1, 2, 5, 10)} | {"map": "mAP"}
# Rows of the two protocols are told apart, and so is what a trunk started from.
_FACTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "protocol": lambda config: methods.get(config["method"]).protocol,
    "trunk starts": lambda config: "pretrained" if config["model.pretrained"] else "from scratch",
}
_MASKCON = dict.fromkeys(("selfcon", "supcon", "supce", "grafit_maskcon", "coins", "maskcon", "snca_plus", "grafit"), 1)
TABLES = {
    "quickstart": Table(
        "configs/digits.py",
        "",
        {RAW_PIXELS: 1, "baseline": 1, "baseline_mlp": 1, "grafit": 1},
        _COLUMNS,
        gallery=("baseline", "grafit"),
    ),
    "cifar100_cpu": Table(
        "configs/cifar100.py",
        "preset=cpu,",
        {"baseline": 1, "baseline_mlp": 2, "snca_plus": 1, "byol": 1, "grafit_fc": 1, "grafit": 2},
        _WITH_PROJECTOR,
    ),
    "cifar100_cpu_long": Table(
        "configs/cifar100.py", "preset=cpu_long,", {"baseline_mlp": 1, "grafit": 1}, _WITH_PROJECTOR
    ),
    # Train level x test level.
    "cifar100_levels": Table(
        "configs/cifar100.py",
        "preset=cpu_short,",
        {"baseline": 1, "clusterfit": 1, "grafit": 1},
        report.level_columns(("coarse", "fine")),
        facts={"trained at": lambda config: config["data.train_level"]},
        train_levels=("coarse", "fine"),
    ),
    "maskcon_cpu": Table("configs/maskcon.py", "dataset=cifar100,preset=cpu,", _MASKCON, _RECALL, facts=_FACTS),
    **{
        targets.table_name(dataset, pretrained=pretrained): Table(
            "configs/maskcon.py", f"dataset={dataset},", _MASKCON, _RECALL, facts=_FACTS, pretrained=pretrained
        )
        for dataset in targets.ROWS
        for pretrained in (False, True)
    },
}


def run(
    table: Table,
    path: pathlib.Path,
    *,
    root: pathlib.Path,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    data_dir: str = "",
    data_source: str = "",
    pretrained: str = "",
) -> list[Result]:
    """Trains what is missing under `path` and collects the results of the table, row by row.

    Args:
      table: which.
      path: where its runs are.
      root: of the repository.
      seeds: of every method, in place of the table's own.
      only: these methods alone.
      data_dir: TFDS's data directory.
      data_source: where the same images lie, in place of the config's data.source; empty for that.
      pretrained: the file of weights, for a table whose trunks start from one.
    """
    if table.pretrained != bool(pretrained):
        if table.pretrained:
            raise UserError("the table's trunks start pretrained: found no file of weights, want --pretrained=FILE.")
        raise UserError(f"the table's trunks start from scratch: found {pretrained} of weights, want no --pretrained.")
    unknown = set(only or ()) - set(table.seeds)
    if unknown:
        raise UserError(f"the table has no {', '.join(sorted(unknown))}: its methods are {', '.join(table.seeds)}.")

    def one(method: str, seed: int, level: str) -> Result:
        directory = run_directory(path, method, seed, level)
        arg = f"{table.arg}method={method},seed={seed}" + (f",level={level}" if level else "")
        if methods.get(method).clusters:  # of the features of the baseline with this seed, which may not be there yet
            one(CLUSTERED, seed, level)
            arg += f",from={run_directory(path, CLUSTERED, seed, level)}"
        config = load_config(root / table.config, arg)
        config.data.data_dir = data_dir
        config.data.source = data_source or config.data.source
        config.model.pretrained = pretrained
        if (directory / "metrics.json").exists():
            workdir.claim(directory, config)  # refuses the results of another config
        else:
            train.train(config, directory)
        command = f"python experiments/train.py --config={table.config}:{arg} --workdir={directory}"
        return report.collect(directory) | {"command": command}

    results = []
    for level, (method, num_seeds) in itertools.product(table.train_levels or ("",), table.seeds.items()):
        if only is not None and method not in only:
            continue
        if method == RAW_PIXELS:
            results.append(_raw_pixels(table, path / method, root))
            continue
        for seed in range(num_seeds) if seeds is None else seeds:
            results.append(one(method, seed, level))
    return results


def run_directory(path: pathlib.Path, method: str, seed: int, level: str = "") -> pathlib.Path:
    """Named by the method, the level of labels it is trained on, if there are several, and the seed, if it is not 0."""
    return path / "_".join([method, *([level] if level else []), *([f"seed{seed}"] if seed else [])])


def load_config(path: pathlib.Path, arg: str) -> ml_collections.ConfigDict:
    """The config that a config file makes of `arg`."""
    spec = importlib.util.spec_from_file_location("table_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def _raw_pixels(table: Table, path: pathlib.Path, root: pathlib.Path) -> Result:
    config = load_config(root / table.config, table.arg.rstrip(","))
    records = sources.load(**config.data)
    train_split, test_split = (
        evaluation.Embedded(records[s].image.reshape(len(records[s]), -1).astype(np.float32), records[s].labels)
        for s in ("train", "test")
    )
    e = config.eval
    metrics = evaluation.evaluate(
        test_split, train_split, ks=e.recall_at, knn_k=e.knn_k, knn_temperature=e.knn_temperature
    )
    path.mkdir(parents=True, exist_ok=True)
    workdir.write(path / "metrics.json", json.dumps(metrics) + "\n")
    return {"method": RAW_PIXELS, "seed": 0, "metrics": metrics, "run": environment.describe(), "config": {}}


def render(table: Table, results: Sequence[Result]) -> str:
    """The table in Markdown, with what its numbers stand on below it."""
    trained = [r["run"] for r in results if r["method"] != RAW_PIXELS]
    text = report.markdown_table(results, table.columns, _NOTES, table.facts)
    if not trained:
        return text
    facts = trained[0]
    return (
        f"{text}\n\n"
        f"In percent. {facts['train_images']:,} training and {facts['test_images']:,} test images; {_standing(trained)}"
    )


def _standing(facts: Sequence[dict]) -> str:
    """What the numbers were made with, from the runs' `environment.describe()`."""
    first = facts[0]
    packages = ", ".join(f"{name} {version}" for name, version in first["packages"].items())
    revisions = ", ".join(dict.fromkeys(str(fact["revision"]) for fact in facts))
    return f"{first['device']}, {first['processor']}; Python {first['python']}, {packages}; revision {revisions}."


def draw(table: Table, path: pathlib.Path) -> pathlib.Path:
    """The gallery of the table's two methods, seed 0, as `path`/gallery.png."""
    embeddings = {}
    for method in table.gallery:
        run_, state = experiment.restore_newest(run_directory(path, method, 0))
        test = run_.records["test"]
        embeddings[method] = run_.embed_fn(experiment.variables(state), test.image)["trunk"]
    target = path / "gallery.png"
    report.gallery(target, test, embeddings)
    return target


def results_path(root: pathlib.Path, name: str) -> pathlib.Path:
    """Where the results of a table or a benchmark are kept."""
    return root / "experiments" / "results" / f"{name}.json"


def blocks(root: pathlib.Path) -> dict[str, str]:
    """The blocks of README.md and docs that come from recorded results: name -> text."""
    found = {"maskcon_rows": targets.render(lambda name: results_path(root, name))}
    for name, table in TABLES.items():
        weights = " --pretrained=resnet18.safetensors" if table.pretrained else ""
        found[name] = f"Not run: `python experiments/reproduce.py --table={name}{weights} --record`."
    for path in sorted(results_path(root, "").parent.glob("*.json")):
        recorded = json.loads(path.read_text())
        found[path.stem] = render(TABLES[path.stem], recorded) if path.stem in TABLES else render_benchmark(recorded)
    return found


# What a benchmark's line may say: key -> heading, format. What shares a heading shares a column.
_MEASURED = {
    "work": ("work", "{}"),
    "seconds": ("seconds", "{:.3g}"),
    "images_per_second": ("throughput", "{:.0f} images/s"),
    "views_per_second": ("throughput", "{:.0f} views/s"),
    "peer": ("peer", "{}"),
    "peer_seconds": ("its seconds", "{:.3g}"),
    "ratio": ("ratio", "{:.2f}"),
    "run_minutes": ("whole run", "{:.1f} min"),
    "goal": ("goal", "{:.2g} x"),
    "goal_s": ("goal", "{:g} s"),
    "ratio_as_released": ("ratio to it as released", "{:.2f}"),
    "gigabytes_over_memory": ("memory", "{:.2f} GB extra"),
    "peak_gigabytes": ("memory", "{:.1f} GB"),
    "device_gigabytes": ("a device needs", "{:.1f} GiB"),
    "fits": ("fits TPU", "{}"),
    "model_flop_utilisation": ("model FLOP utilisation", "{:.1%}"),
    "views_share": ("views", "{:.1%} of a step"),
}
_GROWTH = {
    "work": ("measured", "{}"),
    "sizes": ("at", "{}"),
    "curve_s": ("seconds", "{}"),
    "exponent": ("exponent", "{:.2f}"),
    "seconds_per_unit": ("seconds a unit, straight line", "{:.2g}"),
    "seconds_at_zero": ("seconds at 0", "{:.2g}"),
}


def render_benchmark(lines: Sequence[dict], table=report.markdown) -> str:
    """A benchmark's entries as text: what took a time, what a time was fitted to, what a step consists of."""
    parts = [
        table(*_cells(_MEASURED, [line for line in lines if "seconds" in line or "device_gigabytes" in line])),
        table(*_cells(_GROWTH, [_spelt(line) for line in lines if "curve_s" in line])),
        *(f"{line['work']}: {line['share']:.1%} ({_shares(line['shares'])})." for line in lines if "share" in line),
        _standing([line["environment"] for line in lines]),
    ]
    return "\n\n".join(part for part in parts if part)


def _cells(columns: Mapping[str, tuple[str, str]], lines: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, of the columns that any line has something for."""
    headings: dict[str, dict[str, str]] = {}
    for key, (heading, form) in columns.items():
        if any(line.get(key) is not None for line in lines):
            headings.setdefault(heading, {})[key] = form
    rows = []
    for line in lines:
        texts = [
            [form.format(line[key]) for key, form in keys.items() if line.get(key) is not None]
            for keys in headings.values()
        ]
        rows.append([text[0] if text else "" for text in texts])
    return [*headings], rows


def _spelt(line: dict) -> dict:
    """A line with its lists as text."""
    return line | {
        "sizes": ", ".join(map(str, line["sizes"])),
        "curve_s": ", ".join(f"{s:.3g}" for s in line["curve_s"]),
    }


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {part:.1%}" for kind, part in sorted(shares.items(), key=lambda item: -item[1]))


def write_pages(root: pathlib.Path) -> None:
    """Renders every recorded result into its place, in README.md or in a page of docs."""
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    texts = {page: page.read_text() for page in pages}
    for name, block in blocks(root).items():
        page = next((page for page, text in texts.items() if f"<!-- {name} -->" in text), pages[0])
        texts[page] = report.replace_block(texts[page], name, block)
    for page, text in texts.items():
        workdir.write(page, text)
