"""Embeddings and what is done with them: exact neighbours, metrics, clusters, a linear probe."""
