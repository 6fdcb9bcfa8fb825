"""`python -m grafit_jax` is `grafit`."""

from grafit_jax.commands import main

if __name__ == "__main__":
    main.main()
