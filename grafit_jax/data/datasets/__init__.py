"""Particular data sets: their levels of labels, splits and variants."""
