"""The command `grafit export`; see grafit_jax/commands/export.py."""

import runpy

runpy.run_module("grafit_jax.commands.export", run_name="__main__", alter_sys=True)
