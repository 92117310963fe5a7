"""What is logged; and that a server which does not answer costs seconds and nothing else, with the real W&B."""

from __future__ import annotations

import gzip
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recording import run

from fedgh_app.callbacks import wandb as tracking
from fedgh_app.callbacks.wandb import WandB, flatten
from fedgh_app.config.compose import compose_config
from fedgh_app.runs.history import Round
from fedgh_app.runs.records import Tracking


class Log:
    """Stands in for a W&B run; keeps what is logged."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log(self, values: dict[str, float], **_: Any) -> None:
        self.values |= values


def tracker(*overrides: str) -> WandB:
    """As the config says."""
    return WandB(dict(compose_config(["tracking=wandb", *overrides]).tracking))


def logged(current: Round, clients: int = 3) -> dict[str, float]:
    hook = tracker()
    hook.run = Log()
    federation: Any = SimpleNamespace(clients={str(number): None for number in range(clients)})
    hook.after_round(federation, current)
    return dict(hook.run.values)


def test_numbers_are_flattened_and_words_and_matrices_left_out() -> None:
    tree = {"a": {"b": 1, "c": {"d": 2.5}}, "e": "word", "f": [[1.0]], "g": None, "h": True}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2.5}


def test_every_number_of_a_round_is_logged() -> None:
    current = Round(
        round=3,
        train={"loss": 2.0, "clients": {"0": {"loss": 1.0}}},
        strategy={
            "staleness": {"0": 0, "0#2": 4},
            "dropped": 1,
            "c": {"0": 0.5},
            "clients": ["0"],
            "cosines": [[None]],
        },
        clusters={"0": ["0", "2"], "1": ["1"]},
        selection={"chosen": [["0"]], "asked": {"clients": ["0"], "bytes": 12}},
        distillation={"global": 0.25},
        privacy={"epsilon": 1.5, "releases": 3},
    )
    assert logged(current) == {
        "train/loss": 2.0,
        "train/clients/0/loss": 1.0,
        "strategy/staleness/0": 0,
        "strategy/staleness/0#2": 4,
        "strategy/dropped": 1,
        "strategy/c/0": 0.5,
        "clusters/count": 2,
        "clusters/of/0": 0,
        "clusters/of/2": 0,
        "clusters/of/1": 1,
        "selection/asked/bytes": 12,
        "distillation/global": 0.25,
        "privacy/epsilon": 1.5,
        "privacy/releases": 3,
    }


def test_of_many_clients_no_number_of_a_single_one_is_logged() -> None:
    """W&B makes a chart of every name: of a thousand clients, thousands."""
    by_client = {str(number): {"score": 0.5, "parts": {"hip": 0.5}} for number in range(1000)}
    current = Round(
        round=3,
        train={"loss": 2.0, "clients": {"999": {"loss": 1.0}}},
        evaluate={"clients": {"score": 0.5, "by_client": by_client}},
        strategy={"c": {"7": 0.5, "7#2": 0.1}, "conflicting": 0.25},
        clusters={"cluster-0": [str(number) for number in range(1000)]},
    )
    assert logged(current, 1000) == {
        "train/loss": 2.0,
        "clients/score": 0.5,
        "strategy/conflicting": 0.25,
        "clusters/count": 1,
    }
    assert "clients/by_client/999/parts/hip" in logged(current, 50)


def test_axes_that_are_off_log_nothing() -> None:
    assert logged(Round(round=1, train={"loss": 2.0})) == {"train/loss": 2.0}


class Server(http.server.ThreadingHTTPServer):
    """Lets W&B begin a run, and from `stall` on accepts whatever comes and answers nothing."""

    daemon_threads = True
    stall = threading.Event()

    class RequestHandlerClass(http.server.BaseHTTPRequestHandler):
        """One request."""

        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            name = json.loads(body or b"{}").get("variables", {}).get("name") if self.path == "/graphql" else None
            project = {"id": "p", "name": "fedgh", "entity": {"id": "e", "name": "lab"}}
            bucket = {"id": "b", "name": name, "displayName": name, "config": "{}", "project": project}
            self.answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}, "model": {"bucket": None}}})

        def answer(self, content: Any = None) -> None:
            if Server.stall.is_set():
                time.sleep(600)
            data = json.dumps(content or {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.RequestHandlerClass)


@pytest.fixture
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a W&B server that accepts and never answers, refuses, or answers; set for W&B, with a key."""
    import wandb

    with socket.socket() as bound, Server() as server:
        bound.bind(("127.0.0.1", 0))
        if request.param == "silent":
            bound.listen()  # connections are made, and nobody takes them
        port = server.server_port if request.param == "answers" else bound.getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        Server.stall.clear()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        wandb.teardown()  # it keeps the address that it saw first
        yield address
        wandb.teardown()
        server.shutdown()


TRACKED = ["tracking=wandb", "evaluate.clients_every=0", "evaluate.central_every=0"]


@pytest.mark.parametrize(("url", "seconds"), [("silent", 5.0), ("refuses", 0.0)], indirect=["url"])
def test_an_unreachable_server_costs_five_seconds_and_the_run_is_tracked_offline(
    url: str, seconds: float, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    reachable = tracking.reachable

    def timed(address: str) -> bool:
        started = time.monotonic()
        try:
            return reachable(address)
        finally:
            asked.append(time.monotonic() - started)

    monkeypatch.setattr(tracking, "reachable", timed)
    run([*toy, *TRACKED], tmp_path / "run", more=[tracker()])
    (waited,) = asked
    assert seconds <= waited < seconds + 2
    said = Tracking.read(tmp_path / "run")
    assert (said.mode, said.url) == ("offline", None)
    assert said.sync == f"wandb sync {said.folder}"
    assert list(Path(said.folder).glob("run-*.wandb"))


@pytest.mark.parametrize("url", ["silent"], indirect=True)
def test_a_server_that_answers_but_begins_no_run_is_left_for_offline(
    url: str, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "reachable", lambda address: True)
    monkeypatch.setattr(tracking, "INIT_SECONDS", 1.0)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 1.0)
    run([*toy, *TRACKED], tmp_path / "run", more=[tracker()])
    said = Tracking.read(tmp_path / "run")
    assert said.mode == "offline"
    assert list(Path(said.folder).glob("run-*.wandb"))


@pytest.mark.parametrize("url", ["answers"], indirect=True)
def test_a_server_that_is_lost_in_mid_run_holds_up_neither_rounds_nor_the_end(
    url: str, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 2.0)
    log, rounds = WandB._log, []

    def lose(hook: WandB, current: Round, *more: Any) -> None:
        started = time.monotonic()
        log(hook, current, *more)
        rounds.append(time.monotonic() - started)
        if current.round == 1:
            Server.stall.set()

    monkeypatch.setattr(WandB, "_log", lose)
    started = time.monotonic()
    run([*toy, *TRACKED, "rounds=4"], tmp_path / "run", more=[tracker()])
    assert max(rounds) < 1 and time.monotonic() - started < 60
    said = Tracking.read(tmp_path / "run")
    assert (said.mode, said.sync) == ("online", f"wandb sync {said.folder}")
    assert list(Path(said.folder).glob("run-*.wandb"))


def test_a_tracker_that_breaks_costs_nothing_else(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise BrokenPipeError("no service")

    monkeypatch.setattr(WandB, "_log", fail)
    done, _ = run([*toy, *TRACKED, "tracking.mode=offline"], tmp_path / "run", more=[tracker("tracking.mode=offline")])
    assert len(done.history) == 3
