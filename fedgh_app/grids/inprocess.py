"""A federation inside one process: a Flower Grid that calls the ClientApp directly, under a virtual clock.

Nothing is sent over a network and nothing runs at the same time, so a run is easy to step through, repeats exactly and
needs no Ray. How long each client would have taken is kept on a virtual clock, from configured speeds.
"""

import heapq
import itertools
from collections.abc import Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedgh_app.flower import SUPERLINK_NODE_ID, ErrorCode, Run, TaskIdentity
from fedgh_app.resources import Values


class InProcessGrid(Grid):
    """Answers each message by calling ``client_app`` in this process.

    Args:
        node_configs: node config of each simulated node; node ids are 1, 2, …
        run_config: the run config that every client's Context carries.
        examples_per_second: speed of a client on the virtual clock.
        speeds: factor on that speed by client name (node config ``name``, else ``partition-id``).
    """

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Iterable[Values],
        run_config: Values,
        *,
        examples_per_second: float = 100.0,
        speeds: Mapping[str, float] | None = None,
    ) -> None:
        # Outside a run nobody has set who is speaking, and Flower's Message refuses to be made.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
        self.client_app = client_app
        self.contexts = {
            i: Context(run_id=1, node_id=i, node_config=dict(node), state=RecordDict(), run_config=dict(run_config))
            for i, node in enumerate(node_configs, start=1)
        }
        self.examples_per_second = examples_per_second
        self.speeds = dict(speeds or {})
        self.clock = 0.0  # virtual seconds since the start; only waiting for replies moves it
        self._busy_until = dict.fromkeys(self.contexts, 0.0)
        self._ready: list[tuple[float, int, Message]] = []
        self._ids = itertools.count(1)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Answer the messages; each reply is ready once its client would have finished."""
        ids = []
        for message in messages:
            number = next(self._ids)
            message.metadata.__dict__["_message_id"] = str(number)
            reply = self._answer(message)
            node_id = message.metadata.dst_node_id
            start = max(self.clock, self._busy_until.get(node_id, 0.0))
            ready = start + self._seconds(node_id, reply)
            self._busy_until[node_id] = ready
            heapq.heappush(self._ready, (ready, number, reply))
            ids.append(str(number))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The next reply to one of ``message_ids`` in virtual time, with the clock moved to it; at most one."""
        wanted = set(message_ids)
        for entry in sorted(self._ready):
            ready, _, reply = entry
            if reply.metadata.reply_to_message_id in wanted:
                self._ready.remove(entry)
                heapq.heapify(self._ready)
                self.clock = max(self.clock, ready)
                return [reply]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """All replies, in the order in which the clients finish."""
        waiting = set(self.push_messages(messages))
        replies = []
        while arrived := self.pull_messages(waiting):
            replies.extend(arrived)
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        return replies

    def get_node_ids(self) -> list[int]:
        """Ids of all nodes."""
        return list(self.contexts)

    run = Run.create_empty(run_id=1)  # nothing here depends on it

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self.run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def _answer(self, message: Message) -> Message:
        try:
            reply = self.client_app(message, self.contexts[message.metadata.dst_node_id])
        # Whatever a client raises is its own failure and must not end the run, as in Flower's engines.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        reply.metadata.__dict__["_message_id"] = f"reply-{message.metadata.message_id}"
        return reply

    def _seconds(self, node_id: int, reply: Message) -> float:
        records = reply.content.metric_records.values() if reply.has_content() else ()
        examples = [float(record.get("num-examples", 0)) for record in records]  # type: ignore[arg-type]  # our own
        node_config = self.contexts[node_id].node_config
        name = str(node_config.get("name", node_config.get("partition-id", node_id)))
        return sum(examples) / (self.examples_per_second * self.speeds.get(name, 1.0))
