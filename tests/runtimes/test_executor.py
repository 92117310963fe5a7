"""A site's executor, with a SuperNode that has one message."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import scipy.io
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from flwr.proto.task_pb2 import Task

from fedgh_app.errors import UserError
from fedgh_app.pose.readers.intake import read_mat
from fedgh_app.runtimes import executor

PATIENCE = 120.0


class Enough(Exception):
    """The test has seen what it wanted."""


def answer(address: str, token: str, parent: int) -> None:
    """Stands in the place of a message's process: reads the MATLAB file that the token names."""
    found = read_mat(Path(token))["joints"].shape
    Path(token).with_suffix(".part").write_text(str(found))
    Path(token).with_suffix(".part").rename(Path(token).with_suffix(".done"))


def served_by(acquire: Callable[[Any], AcquireTaskResponse], patch: pytest.MonkeyPatch) -> None:
    """Run an executor of a SuperNode that answers in this way."""
    client = SimpleNamespace(from_server_address=lambda *args, **kwargs: SimpleNamespace(AcquireTask=acquire))
    patch.setattr(executor, "RuntimeHttpClient", client)
    patch.setattr(executor, "PRELOAD", [])
    executor.serve("127.0.0.1:1", None, os.getppid())


@pytest.mark.parametrize("refusal", [401, 403])
def test_a_supernode_that_stumbles_is_asked_again_and_one_that_refuses_is_not(
    refusal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = iter((500, 503, refusal))

    def acquire(request: Any) -> AcquireTaskResponse:
        httpx.Response(next(statuses), request=httpx.Request("POST", "http://127.0.0.1:1")).raise_for_status()
        return AcquireTaskResponse()

    with pytest.raises(UserError, match=rf"^--superexec-auth-secret-file: the SuperNode at 127\.0.* status {refusal};"):
        served_by(acquire, monkeypatch)
    assert not list(statuses)


def test_a_messages_process_reads_matlab_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, done = tmp_path / "joints.mat", tmp_path / "joints.done"
    scipy.io.savemat(file, {"joints": [[1.0, 2.0, 3.0]]})
    end = time.monotonic() + PATIENCE
    tasks = [AcquireTaskResponse(task=Task(), token=str(file))]

    def acquire(request: Any) -> AcquireTaskResponse:
        if done.exists() or time.monotonic() > end:
            raise Enough
        return tasks.pop() if tasks else AcquireTaskResponse()

    monkeypatch.setattr(executor, "_answer", answer)
    with pytest.raises(Enough):
        served_by(acquire, monkeypatch)
    assert done.read_text() == "(1, 3)"
