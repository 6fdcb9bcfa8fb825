"""Saves the model of a run as a folder of its own, or uploads it: `grafit export`."""

from grafit_jax.commands import main

if __name__ == "__main__":
    main.run("export")
