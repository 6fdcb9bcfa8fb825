"""Writes the report of a run: `grafit report`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("grafit_jax.commands.report", run_name="__main__", alter_sys=True)
