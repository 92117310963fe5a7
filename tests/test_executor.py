"""A site's executor, with a SuperNode that has one message."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scipy.io
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from flwr.proto.task_pb2 import Task

from fedgh_app import executor
from fedgh_app.pose.readers.intake import read_mat

PATIENCE = 120.0


class Enough(Exception):
    """The test has seen what it wanted."""


def answer(address: str, token: str, parent: int) -> None:
    """Stands in the place of a message's process: reads the MATLAB file that the token names."""
    found = read_mat(Path(token))["joints"].shape
    Path(token).with_suffix(".part").write_text(str(found))
    Path(token).with_suffix(".part").rename(Path(token).with_suffix(".done"))


def test_a_messages_process_reads_matlab_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, done = tmp_path / "joints.mat", tmp_path / "joints.done"
    scipy.io.savemat(file, {"joints": [[1.0, 2.0, 3.0]]})
    end = time.monotonic() + PATIENCE
    tasks = [AcquireTaskResponse(task=Task(), token=str(file))]

    def acquire(request: Any) -> AcquireTaskResponse:
        if done.exists() or time.monotonic() > end:
            raise Enough
        return tasks.pop() if tasks else AcquireTaskResponse()

    client = SimpleNamespace(from_server_address=lambda *args, **kwargs: SimpleNamespace(AcquireTask=acquire))
    monkeypatch.setattr(executor, "RuntimeHttpClient", client)
    monkeypatch.setattr(executor, "_answer", answer)
    monkeypatch.setattr(executor, "PRELOAD", [])
    with pytest.raises(Enough):
        executor.serve("127.0.0.1:1", None, os.getppid())
    assert done.read_text() == "(1, 3)"
