"""Prints and draws the nearest images of some queries: `grafit search`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("grafit_jax.commands.search", run_name="__main__", alter_sys=True)
