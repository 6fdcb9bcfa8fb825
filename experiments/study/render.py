"""Recorded results as Markdown blocks of README.md and docs."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import filelock

from grafit_jax import config as config_lib
from grafit_jax.errors import UserError, reading
from grafit_jax.runs import workdir
from grafit_jax.runs.results import CLUSTERS, Result
from grafit_jax.runs.tables import markdown
from study import claims, curves, layout, published, recording, reference, reproduction
from study.recording import RAW_PIXELS
from study.reproduction import RowRun
from study.tables import TABLES, Table


def render(table: Table, found: Sequence[Result], where: str = "the table") -> str:
    """Returns a table in Markdown, with its setting and provenance below.

    Raises:
      UserError: results that are not comparable.
    """
    recording.check_together(found, where)
    trained = [r["run"] for r in found if r["method"] != RAW_PIXELS]
    name, shared = layout.row_names(found, table.notes, table.facts)
    text = _rows(table, found, name, table.columns)
    if not trained:
        return text
    layers = "" if table.levels or len(table.layers) > 1 else f"Metrics at the {table.layers[0]}."
    sizes = f"{trained[0]['train_images']:,} training and {trained[0]['test_images']:,} test images"
    return f"{text}\n\n" + " ".join(filter(None, ["In percent.", layers, shared, f"{sizes}; {_provenance(trained)}"]))


def _rows(
    table: Table, found: Sequence[Result], name: Callable[[Result], Sequence[str]], columns: Mapping[str, str]
) -> str:
    """Returns the rows of a table with these columns; `name` is of `layout.row_names`."""
    shown = [result | {"metrics": _at_own_layers(result)} for result in found]
    return layout.markdown_table(shown, ["method"], name, columns, *_parts(table))


def _at_own_layers(result: Result) -> dict[str, float]:
    """Returns the metrics of a result, without a projector's where the method has none of its own."""
    without = recording.own_layer(result["method"]) == "trunk"
    return {key: value for key, value in result["metrics"].items() if not (without and key.startswith("projector/"))}


def _parts(table: Table) -> tuple[str, Mapping[str, layout.Key]]:
    """Returns heading and parts of `layout.markdown_table`: the label levels, or the layers."""
    if table.levels:
        return "level", layout.at_levels(table.levels)
    return "layer", layout.at_layers(table.layers)


def _provenance(facts: Sequence[dict]) -> str:
    """Returns the provenance of runs: hardware, versions, revisions."""
    made = dict.fromkeys(
        f"{fact['device']}, {fact['processor']}; Python {fact['python']}, "
        + ", ".join(f"{name} {version}" for name, version in fact["packages"].items())
        for fact in facts
    )
    revisions = ", ".join(dict.fromkeys(str(fact["revision"]) for fact in facts))
    return f"{'; or '.join(made)}; revision {revisions}."


def results_path(root: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the file of a table's or benchmark's recorded results."""
    return root / "experiments" / "results" / f"{name}.jsonl"


def recorded(root: pathlib.Path) -> dict[str, list[Result]]:
    """Returns the recorded results of every table that has any.

    Raises:
      UserError: an unreadable file, or a result whose config is not its row's.
    """
    paths = {name: results_path(root, name) for name in TABLES}
    found = {name: recording.read(path) for name, path in paths.items() if path.is_file()}
    for name, of_table in found.items():
        for result in of_table:
            _check_place(root, name, result)
    return found


def _check_place(root: pathlib.Path, name: str, result: Result) -> None:
    """Raises a UserError if a result's config is not the one of its row and table."""
    path, table, config = results_path(root, name), TABLES[name], result["config"]
    place = f"{path}, row {result['row']}, seed {result['seed']}"
    with reading(path, recording.RESTORE):
        # The same images may come from another source; their fingerprints are compared instead.
        elsewhere = config["data.source"] if config["data.source"].partition(":")[0] in config_lib.FILES else ""
        weights = config.get("model.pretrained", "") if table.pretrained else ""
        try:
            (point,) = reproduction.points(
                table, pathlib.Path(), root=root, seeds=[result["seed"]], only=[result["row"]],
                data_source=elsewhere, pretrained=weights,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"{place}: found an entry of no run of the table ({error}); remove the entry.") from error
        changed = recording.differences(config, point.flat)
    if changed:
        raise UserError(
            f"{place}: found another config ({'; '.join(changed)}); expected the row's own; restore the file or the "
            "config file, or remove the entry and record it again."
        )


def check_record(root: pathlib.Path, name: str, runs: Sequence[RowRun]) -> None:
    """Checks before training that the results of these runs can be recorded; raises as `record`."""
    results: list[Result] = [{"row": p.row.name, "seed": p.seed, "config": p.flat} for p in runs]
    _merged(root, name, results)
    for result in results:
        _check_place(root, name, result)


def record(root: pathlib.Path, name: str, result: Result) -> None:
    """Records a result of a table and renders the pages.

    Raises:
      UserError: a result whose config is not its row's; as `recording.merge` and `recording.check_together`.
    """
    path = results_path(root, name)
    _check_place(root, name, result)
    with _alone(path.parent):
        merged = _merged(root, name, [result])
        recording.check_together(merged, str(path))
        claims.check(recorded(root) | {name: merged})
        if curves.render(merged):
            curves.picture(root / "docs" / _followed(name), merged)
        _keep(root, path, [recording.save_form(each) for each in merged])


def record_benchmark(root: pathlib.Path, name: str, lines: Sequence[dict]) -> None:
    """Replaces the recorded entries of a benchmark and renders the pages."""
    path = results_path(root, name)
    with _alone(path.parent):
        _keep(root, path, lines)


def _keep(root: pathlib.Path, path: pathlib.Path, entries: Sequence[dict]) -> None:
    workdir.write(path, recording.dumps(entries))
    write_pages(root)


def _merged(root: pathlib.Path, name: str, new: Sequence[Result]) -> list[Result]:
    path = results_path(root, name)
    old = recording.read(path) if path.is_file() else []
    return recording.merge(old, new, [row.name for row in TABLES[name].rows], str(path))


def _alone(folder: pathlib.Path) -> filelock.BaseFileLock:
    """Returns a lock that serialises reading, merging and writing the results in `folder`."""
    return filelock.FileLock(folder / ".lock")


def blocks(root: pathlib.Path) -> dict[str, str]:
    """Returns name -> text for the generated blocks of README.md and docs: recorded results, and the reference."""
    of_tables = recorded(root)
    found = {
        "maskcon_rows": published.render(of_tables, [name for name in TABLES if name.startswith("maskcon_")]),
        "published_rows": published.render(of_tables, [name for name in TABLES if not name.startswith("maskcon_")]),
        "claims": claims.render(of_tables),
        "results_summary": claims.summary(of_tables),
        "config_keys": reference.config_keys(),
        "commands": reference.commands(),
        "over_epochs": _over_epochs(of_tables),
        "clusters": clusters(of_tables),
    }
    for path in _files(root):
        with reading(path, recording.RESTORE):
            if path.stem in TABLES:
                found[path.stem] = render(TABLES[path.stem], of_tables[path.stem], str(path))
            else:
                text = render_benchmark(recording.load(path))
                found[_block(path)] = f"{found[_block(path)]}\n\n{text}" if _block(path) in found else text
    return found


def _over_epochs(of_tables: Mapping[str, Sequence[Result]]) -> str:
    """Returns picture and numbers of every table whose runs were evaluated during training."""
    parts = []
    for name, found in of_tables.items():
        if text := curves.render(found):
            parts.append(f"`{name}`:\n\n![Fine metrics over the epochs, {name}]({_followed(name)})\n\n{text}")
    return "\n\n".join(parts)


def clusters(of_tables: Mapping[str, Sequence[Result]]) -> str:
    """Returns the agreement of k-means clusters with fine classes, of every table whose runs measured it."""
    parts = []
    columns = dict([*CLUSTERS.items()][:-1])  # without the last one, a table fits a phone
    for name, found in of_tables.items():
        # Not those on held-out training images.
        of_test = [r for r in found if not r.get("config", {}).get("data.holdout")]
        table, measured = TABLES[name], [r for r in of_test if CLUSTERS.keys() & r["metrics"].keys()]
        if measured:
            cells, _ = layout.row_names(measured, table.notes, table.facts)
            parts.append(f"`{name}`:\n\n{_rows(table, measured, cells, columns)}")
    return "\n\n".join(parts)


def _followed(name: str) -> str:
    """Returns the file name, in docs, of a table's curves over the epochs."""
    return f"{name}_epochs.png" if not name.endswith("_epochs") else f"{name}.png"


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(results_path(root, "").parent.glob("*.jsonl"))


def _block(path: pathlib.Path) -> str:
    """Returns the block that shows a recorded file; all GPUs share one block."""
    return "benchmark_gpu" if path.stem.startswith("benchmark_gpu") else path.stem


# Key of a benchmark's line -> heading, format. Keys with the same heading share a column.
_MEASURED = {
    "work": ("work", "{}"),
    "seconds": ("seconds", "{:.3g}"),
    "images_per_second": ("throughput", "{:.0f} images/s"),
    "views_per_second": ("throughput", "{:.0f} views/s"),
    "peer": ("peer", "{}"),
    "ratio": ("ratio", "{:.2f}"),
    "run_minutes": ("whole run", "{:.1f} min"),
    "goal": ("goal", "{:.2g} x"),
    "goal_s": ("goal", "{:g} s"),
    "ratio_as_released": ("ratio to peer as released", "{:.2f}"),
    "gigabytes_over_memory": ("memory", "{:.2f} GB extra"),
    "peak_gigabytes": ("memory", "{:.1f} GB"),
    "device_gigabytes": ("memory per device", "{:.1f} GiB"),
    "fits": ("fits TPU", "{}"),
    "gradient_megabytes": ("gradients", "{:.0f} MB"),
    "batch_norm_megabytes": ("batch statistics", "{:.1f} MB"),
    "memory_megabytes": ("k-NN loss and memory", "{:.1f} MB"),
    "link_ms": ("total over one link", "{:.1f} ms"),
    "batch_norm_reductions": ("all-reduces of batch norms", "{}"),
    "compute_ms": ("networks, at a third of the peak", "{:.0f} ms"),
    "model_flop_utilisation": ("model FLOP utilisation", "{:.1%}"),
    "kills": ("kills", "{}"),
    "hits": ("point of the kill", "{}"),
    "half_written": ("half-written checkpoints", "{} times"),
    "steps_lost": ("steps lost per kill", "{:.1f}"),
    "most_lost": ("at most", "{}"),
    "runs_equal": ("equal to an unkilled run", "{} runs"),
    "checkpoint_megabytes": ("checkpoint", "{:.1f} MB"),
    "step_s": ("step", "{:.2g} s"),
    "still_s": ("loop blocked", "{:.2g} s"),
    "adds_s": ("added per save", "{:.2g} s"),
    "longest_step": ("longest step during a save", "{:.2f} x"),
    "every_steps": ("2 % overhead if saved every", "{} steps"),
}
# A line with one of these keys belongs to the first table.
_MEASURES = {"seconds", "device_gigabytes", "link_ms", "kills", "adds_s"}
_GROWTH = {
    "work": ("work", "{}"),
    "sizes": ("sizes", "{}"),
    "curve_s": ("seconds", "{}"),
    "exponent": ("exponent", "{:.2f}"),
    "seconds_per_unit": ("seconds per unit (linear fit)", "{:.2g}"),
    "seconds_at_zero": ("seconds at 0", "{:.2g}"),
}


def render_benchmark(lines: Sequence[dict], table=markdown) -> str:
    """Returns a benchmark's entries as text: measurements, fitted growth, and shares of a step; "" without entries."""
    if not lines:
        return ""
    parts = [
        table(*_cells(_MEASURED, [_spelt(line) for line in lines if line.keys() & _MEASURES])),
        table(*_cells(_GROWTH, [_spelt(line) for line in lines if "curve_s" in line])),
        *(f"{line['work']}: {line['share']:.1%} ({_shares(line['shares'])})." for line in lines if "share" in line),
        _provenance([line["environment"] for line in lines]),
    ]
    return "\n\n".join(part for part in parts if part)


def _cells(columns: Mapping[str, tuple[str, str]], lines: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows; columns that are empty in every line are left out."""
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
    """Returns a line with its composite values as text."""
    spelt = {
        "sizes": lambda sizes: ", ".join(map(str, sizes)),
        "curve_s": lambda seconds: ", ".join(f"{s:.3g}" for s in seconds),
        "hits": lambda hits: ", ".join(f"{what} {count}" for what, count in hits.items()),
    }
    if line.get("peer") and line.get("peer_seconds") is not None:
        second = f"; PyTorch: {line['torch_s']:.3g} s" if "torch_s" in line else ""
        line = line | {"peer": f"{line['peer']}: {line['peer_seconds']:.3g} s{second}"}
    return line | {key: spell(line[key]) for key, spell in spelt.items() if key in line}


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {part:.1%}" for kind, part in sorted(shares.items(), key=lambda item: -item[1]))


def _pages(root: pathlib.Path) -> list[pathlib.Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def write_pages(root: pathlib.Path) -> None:
    """Renders every block into README.md or the page of docs that has its markers.

    A recorded table without markers in any page is added to docs/results.md.
    """
    texts = {page: page.read_text(encoding="utf-8") for page in _pages(root)}
    recorded_names = {_block(path) for path in _files(root)}
    for name, block in (dict.fromkeys(TABLES, "") | blocks(root)).items():
        page = next((page for page, text in texts.items() if f"<!-- {name} -->" in text), None)
        if page is None and name in recorded_names:
            page = root / "docs" / "results.md"
            texts[page] = f"{texts.get(page, '')}\n## `{name}`\n\n<!-- {name} -->\n<!-- /{name} -->\n"
        if page is not None:
            texts[page] = layout.replace_block(texts[page], name, block)
    for page, text in texts.items():
        workdir.write(page, text)
