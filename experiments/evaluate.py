"""Prints the metrics of a checkpoint or of a file of embeddings: `grafit evaluate`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("grafit_jax.commands.evaluate", run_name="__main__", alter_sys=True)
