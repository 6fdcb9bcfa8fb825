"""Definitions of particular data sets: levels, splits and variants."""
