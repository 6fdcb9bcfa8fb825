"""The points of a sweep, and how they are run, on this machine or by SLURM."""
