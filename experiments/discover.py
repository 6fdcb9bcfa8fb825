"""Proposes finer classes of images as a page and a CSV: `grafit discover`."""

from grafit_jax.commands import main

if __name__ == "__main__":
    main.run("discover")
