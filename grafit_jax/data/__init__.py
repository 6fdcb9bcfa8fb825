"""Records from their sources, the label hierarchy, and batches on the devices."""
