"""Functions behind the scripts in experiments/."""
