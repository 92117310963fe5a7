from __future__ import annotations

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgh_app.grids.inprocess import InProcessGrid


def counting() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 200})}), reply_to=message)

    return app


def grid(speeds: dict[str, float] | None = None) -> InProcessGrid:
    nodes = [{"partition-id": 0}, {"name": "slow", "partition-id": 1}]
    return InProcessGrid(counting(), nodes, {}, examples_per_second=100, speeds=speeds)


def ask(grid: InProcessGrid) -> list[Message]:
    return [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]


def test_a_round_takes_as_long_as_its_slowest_client() -> None:
    federation = grid({"slow": 0.1})
    replies = federation.send_and_receive(ask(federation))
    assert [reply.metadata.src_node_id for reply in replies] == [1, 2]
    assert federation.clock == 20.0  # 200 examples at 10 a second


def test_replies_come_in_the_order_of_the_virtual_clock() -> None:
    federation = grid({"0": 0.5})
    ids = federation.push_messages(ask(federation))
    first = federation.pull_messages(ids)
    assert [reply.metadata.src_node_id for reply in first] == [2]
    assert federation.clock == 2.0
    assert [reply.metadata.src_node_id for reply in federation.pull_messages(ids)] == [1]
    assert federation.clock == 4.0
    assert federation.pull_messages(ids) == []


def test_a_busy_client_starts_the_next_message_when_it_is_done() -> None:
    federation = grid()
    (first,) = federation.push_messages(ask(federation)[:1])
    (second,) = federation.push_messages(ask(federation)[:1])
    federation.pull_messages([second])
    assert federation.clock == 4.0
    federation.pull_messages([first])
    assert federation.clock == 4.0


def test_what_a_client_raises_is_its_own_error_reply() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise RuntimeError("disk full")

    federation = InProcessGrid(app, [{"partition-id": 0}], {})
    (reply,) = federation.send_and_receive(ask(federation))
    assert reply.has_error()
    assert "disk full" in reply.error.reason
