"""A run on disk and on its machines: checkpoints, files, locks, signals, several hosts."""
