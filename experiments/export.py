"""Saves the model of a run as a folder of its own, or uploads it: `grafit export`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("grafit_jax.commands.export", run_name="__main__", alter_sys=True)
