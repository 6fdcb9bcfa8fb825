"""What the command lines share: one line for a user's mistake, and a cache of compiled programs."""

import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from grafit_jax.errors import UserError

# How a mistake ends on every command line.
EXIT_MISTAKE = 2


def run(main: Callable[[Sequence[str]], None]) -> None:
    """`app.run(main)`, with mistakes of the user (flags, configs, data) told in one line on stderr, exit status 2."""

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except UserError as error:
            _exit(error)
        # What absl and ml_collections raise for an unknown flag or key, or a value of another type.
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            _exit(error)

    def guarded(argv):
        logging.set_verbosity(logging.WARNING)
        use_compilation_cache()
        try:
            main(argv)
        except UserError as error:
            _exit(error)

    app.run(guarded, flags_parser=parse)


def use_compilation_cache() -> None:
    """Compiled programs are kept over runs in $JAX_COMPILATION_CACHE_DIR, else ~/.cache/grafit_jax."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path.home() / ".cache" / "grafit_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _exit(error: Exception) -> None:
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    print(f"error: {text}", file=sys.stderr)
    sys.exit(EXIT_MISTAKE)
