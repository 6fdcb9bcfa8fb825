"""Page section: run.json and config.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from grafit_jax.report import markup
from grafit_jax.report.markup import Section, text
from grafit_jax.report.shown import Shown


def section(shown: Shown) -> Section:
    """Makes a table of the environments and one of the configs, with one column per run."""
    header = ["name", *(text(run.name) for run in shown.runs)]
    facts = [flatten_dict({k: v for k, v in run.result["run"].items() if k != "curve"}, sep=": ") for run in shown.runs]
    environment = _side_by_side("Environment", header, facts)
    config = _side_by_side("Config", header, [run.result["config"] for run in shown.runs])
    return Section("environment", "Environment", f"{environment}<details><summary>Config</summary>{config}</details>")


def _side_by_side(caption: str, header: Sequence[str], columns: Sequence[Mapping[str, Any]]) -> str:
    keys = dict.fromkeys(key for column in columns for key in column)
    return markup.table(caption, header, [[*map(markup.name, [k, *(c.get(k, "–") for c in columns)])] for k in keys])
