"""Serves a page to search with: `grafit app`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("grafit_jax.commands.app", run_name="__main__", alter_sys=True)
