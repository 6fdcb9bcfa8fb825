"""The tables of experiments/reproduce.py: runs, recorded results, published rows, claims and rendering."""
