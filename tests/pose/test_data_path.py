import runpy
from pathlib import Path

import torch
from folders import write_arm

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "data_path.py"


def test_benchmark_measures_all_it_shows(tmp_path: Path) -> None:
    benchmark = runpy.run_path(str(BENCHMARK))
    threads = torch.get_num_threads()
    result = benchmark["measure"](write_arm(tmp_path / "arm", 40), repeats=1)
    assert result["images"] == 40 and result["cache_bytes"] == 40 * 96 * 96 * 3
    assert all(value > 0 for name, value in result.items() if name.endswith(("second", "seconds")))
    assert benchmark["table"](result).row_count == 5
    assert torch.get_num_threads() == threads
