"""The command lines: of `grafit`, and of the scripts in experiments/."""
