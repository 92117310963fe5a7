from pathlib import Path

import torch
from folders import write_arm

from benchmarks import data_path


def test_benchmark_measures_all_it_shows(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    result = data_path.measure(write_arm(tmp_path / "arm", 40), repeats=1)
    assert result["images"] == 40 and result["cache_bytes"] == 40 * 96 * 96 * 3
    assert all(value > 0 for name, value in result.items() if name.endswith(("second", "seconds")))
    assert data_path.table(result).row_count == 5
    assert torch.get_num_threads() == threads
