"""Recorded results as text: tables in Markdown, and their places in README.md and docs."""

import pathlib
from collections.abc import Mapping, Sequence

import filelock

from grafit_jax.errors import UserError, reading
from grafit_jax.report.tables import markdown
from grafit_jax.runs import workdir
from grafit_jax.runs.results import Result
from study import claims, curves, layout, published, recording, reproduction
from study.recording import RAW_PIXELS
from study.reproduction import RowRun
from study.tables import TABLES, Table


def render(table: Table, found: Sequence[Result], where: str = "the table") -> str:
    """The table in Markdown, with what its numbers stand on below it; UserError for what cannot stand in one table."""
    recording.check_together(found, where)
    trained = [r["run"] for r in found if r["method"] != RAW_PIXELS]
    text = layout.markdown_table(found, table.columns, table.notes, table.facts)
    if not trained:
        return text
    facts = trained[0]
    return (
        f"{text}\n\n"
        f"In percent. {facts['train_images']:,} training and {facts['test_images']:,} test images; {_standing(trained)}"
    )


def _standing(facts: Sequence[dict]) -> str:
    """What the numbers were made with, from the runs' `provenance.describe()`."""
    made = dict.fromkeys(
        f"{fact['device']}, {fact['processor']}; Python {fact['python']}, "
        + ", ".join(f"{name} {version}" for name, version in fact["packages"].items())
        for fact in facts
    )
    revisions = ", ".join(dict.fromkeys(str(fact["revision"]) for fact in facts))
    return f"{'; or '.join(made)}; revision {revisions}."


def results_path(root: pathlib.Path, name: str) -> pathlib.Path:
    """Where the results of a table or a benchmark are kept."""
    return root / "experiments" / "results" / f"{name}.jsonl"


def recorded(root: pathlib.Path) -> dict[str, list[Result]]:
    """The recorded results of every table that has some.

    Raises:
      UserError: a file that cannot be read, or a result that is not what its row is trained to be.
    """
    paths = {name: results_path(root, name) for name in TABLES}
    found = {name: recording.read(path) for name, path in paths.items() if path.is_file()}
    for name, of_table in found.items():
        for result in of_table:
            _check_place(root, name, result)
    return found


def _check_place(root: pathlib.Path, name: str, result: Result) -> None:
    """Sees that a result is of the row, and of the table, in which it stands; UserError if not."""
    path, table, config = results_path(root, name), TABLES[name], result["config"]
    place = f"{path}, row {result['row']}, seed {result['seed']},"
    with reading(path, recording.WANT):
        # The same images may lie elsewhere, in another order, which their fingerprints tell.
        elsewhere = config["data.source"] if config["data.source"].startswith("npz:") else ""
        weights = config.get("model.pretrained", "") if table.pretrained else ""
        source = reproduction.Source(data_source=elsewhere, pretrained=weights)
        try:
            (point,) = reproduction.points(
                table, pathlib.Path(), root=root, seeds=[result["seed"]], only=[result["row"]], source=source
            )
        except UserError as error:
            raise UserError(f"{place} is of no run of the table ({error}): take the entry out.") from error
        changed = recording.differences(config, point.flat)
    if changed:
        raise UserError(
            f"{place} was not trained by the config of that row ({'; '.join(changed)}): give the file back as it was, "
            "or the config file, or take the entry out and record it again."
        )


def check_record(root: pathlib.Path, name: str, wanted: Sequence[RowRun]) -> None:
    """Sees, before anything is trained, that the results of these runs can be recorded; UserError as `record`."""
    layout.replace_block("\n".join(page.read_text() for page in _pages(root)), name, "")
    _merged(root, name, [{"row": p.row.name, "seed": p.seed, "config": p.flat} for p in wanted])


def record(root: pathlib.Path, name: str, result: Result) -> None:
    """Adds a result to what is recorded of a table, and renders the pages.

    Raises:
      UserError: a result that is not of its row, or as `merge` and `check_together` of recording; a table that has no
        place in a page.
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
    """Keeps the entries of a benchmark, in place of those that were there, and renders the pages."""
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
    """A lock that waits until no other process reads the results in `folder`, to write them again."""
    return filelock.FileLock(folder / ".lock")


def blocks(root: pathlib.Path) -> dict[str, str]:
    """The blocks of README.md and docs that come from recorded results: name -> text."""
    of_tables = recorded(root)
    found = {
        "maskcon_rows": published.render(of_tables, [name for name in TABLES if name.startswith("maskcon_")]),
        "published_rows": published.render(of_tables),
        "claims": claims.render(of_tables),
        "claims_in_short": claims.in_short(of_tables),
        "over_epochs": _over_epochs(of_tables) or _not_run("cifar100_epochs"),
    } | {name: _not_run(name) for name in TABLES}
    for path in _files(root):
        with reading(path, recording.WANT):
            if path.stem in TABLES:
                found[path.stem] = render(TABLES[path.stem], of_tables[path.stem], str(path))
            else:
                text = render_benchmark(recording.load(path))
                found[_block(path)] = f"{found[_block(path)]}\n\n{text}" if _block(path) in found else text
    return found


def _over_epochs(of_tables: Mapping[str, Sequence[Result]]) -> str:
    """Of every table whose runs were followed over their epochs, the picture and the numbers."""
    parts = []
    for name, found in of_tables.items():
        if text := curves.render(found):
            parts.append(f"`{name}`:\n\n![Fine metrics over the epochs, {name}]({_followed(name)})\n\n{text}")
    return "\n\n".join(parts)


def _not_run(name: str) -> str:
    return f"Not run: `{published.command(name)} --record`."


def _followed(name: str) -> str:
    """The picture of a table over the epochs, in docs."""
    return f"{name}_epochs.png" if not name.endswith("_epochs") else f"{name}.png"


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(results_path(root, "").parent.glob("*.jsonl"))


def _block(path: pathlib.Path) -> str:
    """The block that a recorded file is shown in: of GPUs there are many, and they stand one after the other."""
    return "benchmark_gpu" if path.stem.startswith("benchmark_gpu") else path.stem


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
    "gradient_megabytes": ("gradients", "{:.0f} MB"),
    "batch_norm_megabytes": ("batch statistics", "{:.1f} MB"),
    "memory_megabytes": ("k-NN loss and memory", "{:.1f} MB"),
    "link_ms": ("all of it over one link", "{:.1f} ms"),
    "batch_norm_reductions": ("all-reduces of batch norms", "{}"),
    "compute_ms": ("networks, at a third of the peak", "{:.0f} ms"),
    "model_flop_utilisation": ("model FLOP utilisation", "{:.1%}"),
    "kills": ("kills", "{}"),
    "hits": ("what was hit", "{}"),
    "half_written": ("a half-written checkpoint lay there", "{} times"),
    "steps_lost": ("steps lost by a kill", "{:.1f}"),
    "most_lost": ("at most", "{}"),
    "runs_equal": ("ended as never killed", "{} runs"),
    "checkpoint_megabytes": ("checkpoint", "{:.1f} MB"),
    "step_s": ("a step", "{:.2g} s"),
    "still_s": ("the loop stands still", "{:.2g} s"),
    "adds_s": ("a save adds", "{:.2g} s"),
    "longest_step": ("longest step meanwhile", "{:.2f} x"),
    "every_steps": ("2 % of a run, if saved every", "{} steps"),
}
# One of these a line has that stands in the first table.
_MEASURES = {"seconds", "device_gigabytes", "link_ms", "kills", "adds_s"}
_GROWTH = {
    "work": ("measured", "{}"),
    "sizes": ("at", "{}"),
    "curve_s": ("seconds", "{}"),
    "exponent": ("exponent", "{:.2f}"),
    "seconds_per_unit": ("seconds a unit, straight line", "{:.2g}"),
    "seconds_at_zero": ("seconds at 0", "{:.2g}"),
}


def render_benchmark(lines: Sequence[dict], table=markdown) -> str:
    """A benchmark's entries as text: what took a time, what a time was fitted to, what a step consists of."""
    parts = [
        table(*_cells(_MEASURED, [_spelt(line) for line in lines if line.keys() & _MEASURES])),
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
    spelt = {
        "sizes": lambda sizes: ", ".join(map(str, sizes)),
        "curve_s": lambda seconds: ", ".join(f"{s:.3g}" for s in seconds),
        "hits": lambda hits: ", ".join(f"{what} {count}" for what, count in hits.items()),
    }
    return line | {key: spell(line[key]) for key, spell in spelt.items() if key in line}


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {part:.1%}" for kind, part in sorted(shares.items(), key=lambda item: -item[1]))


def _pages(root: pathlib.Path) -> list[pathlib.Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def write_pages(root: pathlib.Path) -> None:
    """Renders every block into its place, in README.md or in a page of docs.

    Raises:
      UserError: what is recorded has no place. A table of which nothing is needs none.
    """
    pages = _pages(root)
    texts = {page: page.read_text() for page in pages}
    shown = {_block(path) for path in _files(root)}
    for name, block in blocks(root).items():
        page = next((page for page, text in texts.items() if f"<!-- {name} -->" in text), None)
        if page is None and name not in shown:
            continue
        page = page or pages[0]
        texts[page] = layout.replace_block(texts[page], name, block)
    for page, text in texts.items():
        workdir.write(page, text)
