"""Reference pages generated from the code: config keys with their comments, commands with their flags."""

import ast
import inspect
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

from grafit_jax import config as config_lib
from grafit_jax.commands import main
from grafit_jax.runs.tables import markdown

# In the order of a typical workflow.
COMMANDS = (
    "prepare", "train", "evaluate", "embed", "search", "app", "discover", "export", "report", "sweep", "reproduce",
    "benchmark",
)  # fmt: skip
_SCRIPTS = pathlib.Path(__file__).parent.parent
_DEFINE = re.compile(r"DEFINE_(\w+)$")
# Assignments to skip: flags, and values that need `__file__`.
_SKIPPED = re.compile(r"DEFINE_|__file__")


def config_keys() -> str:
    """Returns all config keys in Markdown, a table per section: key, default, meaning."""
    defaults = config_lib.flatten(config_lib.default())
    sections: dict[str, list[list[str]]] = {}
    comments = key_comments(inspect.getsource(config_lib))
    for key, comment in comments.items():
        if key in defaults:
            section, _, name = key.rpartition(".")
            sections.setdefault(section, []).append([f"`{name}`", _cell(f"`{defaults[key]!r}`"), _cell(comment)])
    tables = {section: markdown(("key", "default", "meaning"), rows) for section, rows in sections.items()}
    parts = []
    for section, table in tables.items():
        parts += [f"### {section or 'Top level'}", comments.get(section, ""), table]
    return "\n\n".join(filter(None, parts))


def key_comments(source: str) -> dict[str, str]:
    """Returns dotted key -> comment, from `prefix.key = default  # comment`, or a comment in the lines above.

    The keys that `_augmentations()` defines appear under each section that it is assigned to.
    """
    comments = {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }

    def comment(node: ast.stmt) -> str:
        after = [comments[n][0] for n in range(node.lineno, (node.end_lineno or 0) + 1) if n in comments]
        above: list[str] = []
        line = node.lineno - 1
        while line in comments and comments[line][1]:
            above.insert(0, comments[line][0])
            line -= 1
        return " ".join([*above, *after])

    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    shared = dict(_keys(functions["_augmentations"], {"a": ""}))
    names: dict[str, str] = {"c": ""}
    found: dict[str, str] = {}
    for key, node in _keys(functions["default"], names):
        if "_augmentations()" in ast.unparse(node):
            found |= {f"{key}.{name}": comment(each) for name, each in shared.items()}
        found[key] = found.get(key) or comment(node)
    return found


def _keys(function: ast.FunctionDef, names: dict[str, str]) -> Iterator[tuple[str, ast.stmt]]:
    """Yields dotted key and statement of each assignment; `names` maps a variable to the section it stands for."""
    for node in function.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            key = _dotted(node.targets[0], names)
            names.update({target.id: key for target in node.targets[1:] if isinstance(target, ast.Name)})
            yield key, node
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # section.update(_augmentations())
            called = node.value.func
            if isinstance(called, ast.Attribute) and called.attr == "update":
                yield _dotted(called.value, names), node


def _dotted(node: ast.expr, names: Mapping[str, str]) -> str:
    first, _, rest = ast.unparse(node).partition(".")
    return ".".join(filter(None, (names[first], rest)))


def source(name: str) -> pathlib.Path:
    """Returns the file that has the description and the flags of a script."""
    return main.source(name) if name in main.COMMANDS else _SCRIPTS / f"{name}.py"


def commands() -> str:
    """Returns the commands in Markdown: for each its description and a table of its flags."""
    installed = [f"`grafit {name}`" for name in COMMANDS if name in main.COMMANDS]
    parts = [
        f"The installed package has {', '.join(installed[:-1])} and {installed[-1]}, the same code as the scripts;\n"
        "the others need a checkout."
    ]
    for name in COMMANDS:
        tree = ast.parse(source(name).read_text())
        paragraphs = (ast.get_docstring(tree) or "").split("\n\n")
        rows = list(_flags(tree))
        if rows[0][0] == "`--config`":
            rows.insert(1, ["`--config.KEY`", "", "Sets one [config key](config.md), as in `--config.seed=1`."])
        table = markdown(("flag", "default", "meaning"), rows)
        parts += [f"## {name}.py", *map(_paragraph, paragraphs), table]
    return "\n\n".join(parts)


def _paragraph(text: str) -> str:
    """Returns a paragraph of a docstring in Markdown: commands and lists as they are laid out, prose as prose."""
    return f"```text\n{text}\n```" if text.startswith("python ") or "\n  " in text else text


def _flags(tree: ast.Module) -> Iterator[list[str]]:
    """Yields the table row of every flag that a script defines: name, default, help."""
    names = _names(tree)
    for node in ast.walk(tree):
        defined = _DEFINE.search(ast.unparse(node.func)) if isinstance(node, ast.Call) else None
        if not isinstance(node, ast.Call) or not defined:
            continue
        arguments = [eval(ast.unparse(argument), dict(names)) for argument in node.args]
        name, default, *more = arguments
        choices, text = (more[0], more[1]) if defined[1] == "enum" else ((), more[0])
        if choices:
            text = f"{text.rstrip('.')}: {', '.join(f'`{choice}`' for choice in choices)}."
        if name == "config" or any(keyword.arg == "required" for keyword in node.keywords):
            shown = "required"
        elif default in (None, "", []):
            shown = ""
        else:
            shown = f"`{','.join(default) if isinstance(default, list) else default}`"
        yield [f"`--{name}`", shown, _cell(text)]


def _names(tree: ast.Module) -> dict[str, Any]:
    """Returns the names that flag defaults and help texts use: library imports and constants."""
    names: dict[str, Any] = {}
    for node in tree.body:
        imported = isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("grafit_jax", "study"))
        if imported or (isinstance(node, ast.Assign) and not _SKIPPED.search(ast.unparse(node))):
            exec(ast.unparse(node), names)
    return names


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
