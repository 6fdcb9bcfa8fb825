"""Records from their sources, the label hierarchy, batches on the devices, and views."""
