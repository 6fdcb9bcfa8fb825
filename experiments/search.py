"""Prints and draws the nearest images of some queries: `grafit search`."""

from grafit_jax.commands import main

if __name__ == "__main__":
    main.run("search")
