"""Writes embeddings of images to a file: `grafit embed`."""

from grafit_jax.commands import main

if __name__ == "__main__":
    main.run("embed")
