"""The installed command `grafit NAME`: the modules of this folder as command lines."""

import ast
import os
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
    run(name, arguments)


def run(name: str, arguments: list[str] | None = None) -> None:
    """Runs a command of this process, which may start again, with these words, by default those of `sys.argv`."""
    use_large_pages()
    if arguments is not None:
        sys.argv = [sys.argv[0], *arguments]
    runpy.run_module(f"grafit_jax.commands.{name}", run_name="__main__", alter_sys=True)


def use_large_pages() -> None:
    """Starts a command again with large pages for its arrays, on Linux: fewer page faults (docs/performance.md).

    glibc reads its settings at a process's start only. Nothing happens where the variable is set, in whatever way; nor
    where the process was not started as a plain script or as `python -m grafit_jax`: with Python's own options, in a
    test.
    """
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ or not sys.executable:
        return
    words = sys.orig_argv[1:]
    if words in (sys.argv, ["-m", "grafit_jax", *sys.argv[1:]]) and sys.argv[0] != "-":
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        # The option keeps a start that loses the variable from starting a third time.
        os.execv(sys.executable, [sys.executable, "-X", "large_pages", *words])


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
