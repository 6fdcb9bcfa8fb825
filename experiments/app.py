"""Serves a page to search with: `grafit app`."""

from grafit_jax.commands import main

if __name__ == "__main__":
    main.run("app")
