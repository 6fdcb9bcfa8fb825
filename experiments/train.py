"""Trains a run: `grafit train`."""

from grafit_jax.commands import main

if __name__ == "__main__":
    main.run("train")
