"""Reports of runs: tables, pictures and a self-contained HTML page; see `write`."""
