"""A federation while it runs: rounds, topologies, modes, selection."""
