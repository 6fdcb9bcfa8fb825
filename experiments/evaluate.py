"""Prints the metrics of a checkpoint or of a file of embeddings: `grafit evaluate`."""

from grafit_jax.commands import main

if __name__ == "__main__":
    main.run("evaluate")
