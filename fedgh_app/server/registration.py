"""Who takes part: what every node says of itself at the start, and what its replies must then hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedgh_app.errors import UserError, few
from fedgh_app.grids.replies import CLAIM, Expected, one_line
from fedgh_app.grids.screening import ScreeningGrid
from fedgh_app.server.federation import ClientInfo, Federation

FIRST_ANSWER_SECONDS = 120.0  # at least: before it, clients' processes start and import PyTorch


def register(federation: Federation, grid: ScreeningGrid) -> None:
    """Ask every node who it is, have the federation begin with these clients, and tell the grid what to expect of them.

    Raises as `query` does.
    """
    clients = query(federation, grid)

    def expected(client: str, asked: Message) -> Expected:
        return expected_reply(clients[client], asked, federation.task.bounds)

    grid.expected = expected
    grid.knows = lambda reply: known_client(clients, reply)
    federation.admit(clients, grid.client_names)


def query(federation: Federation, grid: ScreeningGrid) -> dict[str, ClientInfo]:
    """Ask every node once who it is, and tell the grid their names.

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
        reasons = few(sorted(said), "; ")
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
    return dict(sorted(clients.items()))


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
    """What a client's reply must hold, beside what it was asked for.

    Args:
        info: of the client.
        asked: the message.
        bounds: the kinds of sums of an evaluation, and what bounds each.
    """
    if asked.metadata.message_type == MessageType.TRAIN:
        return Expected(frozenset({"num-examples", "loss", "steps", "seconds"}), CLAIM * info.examples)
    sums = {f"{kind}/{part}" for kind in bounds for part in info.predicts}
    config = next(iter(asked.content.config_records.values()), ConfigRecord())
    declared = info.examples if config.get("split") == "train" else info.test_examples
    return Expected(frozenset({"num-examples", "loss", "loss-terms", *sums}), CLAIM * declared, bounds)
