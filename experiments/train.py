"""Trains a run: `grafit train`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("grafit_jax.commands.train", run_name="__main__", alter_sys=True)
