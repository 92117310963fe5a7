"""Who takes part: the wait for nodes, what each says of itself at the start, and what its replies must then hold."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedgh_app.errors import RunFailed, UserError, abbreviated
from fedgh_app.grids.reply_checks import CLAIM, Expected, one_line
from fedgh_app.grids.screening import ScreeningGrid
from fedgh_app.server.federation import ClientInfo, Federation

NODE_WAIT_SECONDS = 60.0  # where the runtime does not say
FIRST_ANSWER_SECONDS = 120.0  # at least: before it, clients' processes start and import PyTorch


def wait_for_nodes(
    grid: Grid, expected: int | None, timeout: float | None = None, stop_file: Path | None = None
) -> list[int]:
    """Node ids, once ``expected`` nodes are connected, or (None) once their number stands still.

    Args:
        timeout: seconds to wait for all of them, each of which comes when it does; None where they come together, so
            that who is not there when their number stands still does not come.
        stop_file: once this file exists, the wait ends with `RunFailed`.

    Raises UserError where another number is connected when the wait ends.
    """
    end = time.monotonic() + (timeout or NODE_WAIT_SECONDS)
    nodes: list[int] = []
    while time.monotonic() < end:
        if stop_file is not None and stop_file.exists():
            raise RunFailed("stopped")
        connected = sorted(grid.get_node_ids())
        still, nodes = bool(connected) and connected == nodes, connected
        if len(connected) == expected or (still and expected is None):
            return connected
        if still and (timeout is None or len(connected) > (expected or 0)):
            break
        time.sleep(0.5)
    if expected is None:
        raise RunFailed(f"no node connected within {timeout or NODE_WAIT_SECONDS:g} seconds")
    if timeout is None:
        hint = f'expected {expected}: flwr run . --federation-config "num-supernodes={expected}"'
    else:
        names = sorted(node.name or str(node.node_id) for node in grid.get_nodes())
        hint = (
            f"expected {expected} within runtime.node_timeout={timeout:g} seconds, found {', '.join(names) or 'none'}"
        )
    raise UserError(f"num_clients={expected}: {len(nodes)} nodes are connected; {hint}")


def register(federation: Federation, grid: ScreeningGrid) -> None:
    """Ask every node who it is, have the federation begin with these clients, and tell the grid what to expect of them.

    Raises UserError where a client cannot answer, two share a name, or one predicts something else than the shared
    head does.
    """
    # Who cannot say its own name goes by the one that it was registered under.
    registered = {str(node.node_id): node.name for node in grid.get_nodes() if node.name}
    messages = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in sorted(grid.get_node_ids())]
    answers = grid.answers(messages, timeout=max(federation.settings.round_timeout, FIRST_ANSWER_SECONDS))
    if grid.rejected:
        names = [registered.get(item.client, item.client) for item in grid.rejected]
        said = [f"client {name}: {item.reason}" for name, item in zip(names, grid.rejected, strict=True)]
        reasons = abbreviated(sorted(said), "; ")
        raise UserError(f"{len(grid.rejected)} of {len(messages)} clients cannot take part: {reasons}")
    clients: dict[str, ClientInfo] = {}
    expected = tuple(federation.spec.predicts)
    for asked, reply in answers:
        info = described(reply)
        if info.name in clients:
            raise UserError(
                f"client name {info.name!r} is used by two nodes; expected a different `name` in each node config"
            )
        if info.predicts != expected and not federation.any_head():
            raise UserError(
                f"client {info.name}: predicts {','.join(info.predicts)}; expected {','.join(expected)}, "
                "or sharing=fedpav, which leaves each client its own head"
            )
        clients[info.name] = info
        grid.client_names[asked.metadata.dst_node_id] = info.name
    clients = dict(sorted(clients.items()))
    bounds = federation.task.bounds
    grid.expected = lambda client, asked: expected_reply(clients[client], asked, bounds)
    grid.knows = lambda reply: known_client(clients, reply)
    federation.admit(clients, grid.client_names)


def described(reply: Message) -> ClientInfo:
    """What a client says of itself in a good reply to a query."""
    said: Any = next(iter(reply.content.config_records.values()))
    predicts = tuple(said["predicts"].split(","))
    return ClientInfo(
        said["name"], one_line(said["label"]), said["num-examples"], said["num-test"], predicts, float(said["speed"])
    )


def known_client(clients: Mapping[str, ClientInfo], reply: Message) -> str | None:
    """Name of the client of the run that describes itself in a good reply to a query; None where it is none of them."""
    info = described(reply)
    known = clients.get(info.name)
    return info.name if known is not None and known.predicts == info.predicts else None


def expected_reply(info: ClientInfo, asked: Message, bounds: Mapping[str, str]) -> Expected:
    """What a client's reply must hold, beside what it was asked for; ``bounds`` are those of an evaluation's sums."""
    if asked.metadata.message_type == MessageType.TRAIN:
        return Expected(frozenset({"num-examples", "loss", "steps", "seconds"}), CLAIM * info.examples)
    sums = {f"{kind}/{part}" for kind in bounds for part in info.predicts}
    config = next(iter(asked.content.config_records.values()), ConfigRecord())
    declared = info.examples if config.get("split") == "train" else info.test_examples
    return Expected(frozenset({"num-examples", "loss", "loss-terms", *sums}), CLAIM * declared, bounds)
