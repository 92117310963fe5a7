"""How many processor cores there are to use."""

import os


def usable_cores() -> int:
    """The cores that this process may use: those of its affinity mask where the system has one, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
