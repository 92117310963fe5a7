"""A run directory: its files, opening and resuming a run."""
