"""Writes embeddings of images to a file: `grafit embed`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("grafit_jax.commands.embed", run_name="__main__", alter_sys=True)
