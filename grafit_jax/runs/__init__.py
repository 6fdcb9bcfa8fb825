"""A run on disk and on its hosts: checkpoints, workdir files, locks, signals, multi-host training."""
