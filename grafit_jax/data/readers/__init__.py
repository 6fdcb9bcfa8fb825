"""Readers of TFDS data sets, image folders and CSV files."""
