"""Writes the report of a run: `grafit report`."""

from grafit_jax.commands import main

if __name__ == "__main__":
    main.run("report")
