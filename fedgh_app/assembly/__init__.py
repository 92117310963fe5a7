"""From a config to the parts of a run: each built once, here and nowhere else."""
