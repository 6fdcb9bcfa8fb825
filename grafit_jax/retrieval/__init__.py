"""Retrieval with embeddings: exact nearest neighbours, metrics, k-means and a linear probe."""
