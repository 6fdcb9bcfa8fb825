"""The command `grafit embed`; see grafit_jax/commands/embed.py."""

import runpy

runpy.run_module("grafit_jax.commands.embed", run_name="__main__", alter_sys=True)
