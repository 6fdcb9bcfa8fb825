"""The command `grafit search`; see grafit_jax/commands/search.py."""

import runpy

runpy.run_module("grafit_jax.commands.search", run_name="__main__", alter_sys=True)
