"""Proposes finer classes of images as a page and a CSV: `grafit discover`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("grafit_jax.commands.discover", run_name="__main__", alter_sys=True)
