"""``make bench``: every benchmark, one after the other; tables on the terminal, JSON in ``benchmarks/results/``."""

from __future__ import annotations

import subprocess
import sys

PARTS = ("aggregation", "screening", "simulation", "deployment", "data_path", "hhd", "models")

if __name__ == "__main__":
    # A process each: what one has allocated or how many threads it runs must not reach into the next.
    failed = [part for part in PARTS if subprocess.run([sys.executable, "-m", f"benchmarks.{part}"]).returncode]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
