"""The installed command `grafit NAME`: the modules of this folder as command lines."""

import ast
import pathlib
import runpy
import sys

import grafit_jax
from grafit_jax.errors import UserError, choose

# Names of modules of this folder, in the order of a typical workflow.
COMMANDS = ("train", "evaluate", "embed", "search", "app", "discover", "export", "report")


def main() -> None:
    """Runs `grafit NAME --flag=value …` with the words of `sys.argv`."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"grafit_jax {grafit_jax.__version__}")
        return
    try:
        choose(name, "command", COMMANDS)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)  # cli.EXIT_MISTAKE; cli imports JAX, which takes a second
    sys.argv = [sys.argv[0], *arguments]
    runpy.run_module(f"grafit_jax.commands.{name}", run_name="__main__", alter_sys=True)


def source(name: str) -> pathlib.Path:
    """Returns the file of a command."""
    return pathlib.Path(__file__).with_name(f"{name}.py")


def usage() -> str:
    """Returns the list of the commands, each with the first line of its docstring."""
    lines = ["usage: grafit COMMAND --flag=value …", ""]
    for name in COMMANDS:
        text = ast.get_docstring(ast.parse(source(name).read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<9} {text.splitlines()[0]}")
    return "\n".join([*lines, "", "grafit COMMAND --help describes a command and its flags."])
