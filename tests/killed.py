"""A run that is killed, and what can be compared afterwards."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from fedgh_app.client_app import app as client_app
from fedgh_app.runs import storage


class Killed(BaseException):
    """Nothing of ours may catch it."""


def model_of(directory: Path) -> dict[str, bytes]:
    """The bytes of every tensor of the run's models."""
    files = sorted(directory.glob("model*.safetensors"))
    return {f"{f.name}/{key}": t.numpy().tobytes() for f in files for key, t in storage.load_model(f)[0].items()}


def rounds_of(directory: Path) -> list[dict[str, Any]]:
    """What does not depend on the clock of every line of the history."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(item) for key, item in value.items() if "seconds" not in key}
        return value

    return [timeless(line) for line in storage.read_lines(directory / "history.jsonl")]


def dying_at(server_round: int, message: int) -> Any:
    """A ClientApp whose process dies at the n-th training of a round, after the client has stored its state."""
    seen = itertools.count(1)

    def answer(asked: Message, context: Context) -> Message:
        reply = client_app(asked, context)
        config = asked.content.config_records.get("config", {})
        if config.get("server-round") == server_round and "draw" in config and next(seen) == message:
            raise Killed
        return reply

    return answer
