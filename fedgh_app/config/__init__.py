"""One configuration for every process: composed by Hydra, checked, refused, built."""
