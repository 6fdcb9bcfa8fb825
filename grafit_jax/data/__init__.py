"""Records read from a source, label hierarchies, and the input pipeline."""
