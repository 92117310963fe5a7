"""Where a run happens: simulation, one process, deployment, baselines; sweeps of runs."""
