"""Sweeps: their points, and running them on this machine."""
