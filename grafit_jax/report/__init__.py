"""A run as tables, pictures and one HTML file that needs nothing else: see `write`."""
