"""The exchange of messages in a round: whom the server asks, what they answer, what is rejected, how many bytes move.

Modes and topologies talk to clients through `Exchange` alone.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.logger import log

from fedgh_app.errors import RunFailed, abbreviated
from fedgh_app.grids.screening import POLL_SECONDS, ScreeningGrid, Traffic
from fedgh_app.runs.history import Rejected, Round
from fedgh_app.server.federation import Federation
from fedgh_app.server.selection import Candidate

MOST_TOLD = 10  # clients that one line names


@dataclass(frozen=True, eq=False)
class Answer:
    """A client's good reply."""

    client: str
    number: str  # id of the message that it answers
    reply: Message

    @property
    def metrics(self) -> dict[str, Any]:
        """What it measured."""
        return dict(next(iter(self.reply.content.metric_records.values())))


@dataclass(eq=False)
class Exchange:
    """Asks the clients of a federation and collects their answers, round by round."""

    federation: Federation
    grid: ScreeningGrid  # screens what they answer
    round: Round = field(init=False)  # that is under way

    def begin(self, current: Round) -> None:
        """From now on everything belongs to this round."""
        self.round = current
        self.grid.round = current.round

    def present(self, names: Iterable[str]) -> list[str]:
        """Those of the named clients that are connected and owe no reply."""
        self.grid.refresh()
        absent = self.grid.absent(self.federation.clients)
        return [name for name in names if name not in absent]

    def await_present(self, names: Sequence[str], least: int) -> list[str]:
        """The same, after a wait of ``runtime.node_timeout`` seconds while they are fewer than ``least``.

        Notes on the round who is absent. Raises RunFailed where they still are too few.
        """
        patience = self.federation.settings.runtime.node_timeout or 0.0
        end = time.monotonic() + patience
        current = self.round
        while True:
            self.grid.check_stop()
            self.grid.refresh()
            current.absent = self.grid.absent(self.federation.clients)
            present = [name for name in names if name not in current.absent]
            why = "; ".join(f"client {name}: {reason}" for name, reason in current.absent.items())
            if len(present) >= min(least, len(names)):
                if why:
                    log(WARNING, "round %d: not asked: %s", current.round, why)
                return present
            if time.monotonic() > end:
                raise RunFailed(
                    f"round {current.round}: {len(present)} of {len(names)} clients can be asked after "
                    f"{patience:g} seconds, expected at least {least} ({why})"
                )
            time.sleep(POLL_SECONDS)

    def select(self, names: Sequence[str], count: int, number: int) -> list[str]:
        """The ``count`` clients among ``names`` that train next, by this selection's ``number``; in their order."""
        clients = self.federation.clients
        candidates = [Candidate(name, clients[name].examples, self._seconds(name)) for name in names]
        with self.round.timed("select"):
            chosen = self.federation.selection.select(number, candidates, count, self.losses)
        self.note()
        if len(chosen) < len(clients):
            self.round.selection.setdefault("chosen", []).append(chosen)
        return chosen

    def losses(self, names: Sequence[str]) -> dict[str, float]:
        """Loss of the model that each client would be sent, on its own training images; what asking costs is counted
        apart from the round's bytes.
        """
        before, self.grid.traffic = self.grid.traffic, Traffic()
        answers = self.evaluate(names, "train")
        asked = self.round.selection.setdefault("asked", {"clients": [], "bytes": 0})
        asked["clients"] += list(names)
        asked["bytes"] += self.grid.traffic.down + self.grid.traffic.up
        self.grid.traffic = before
        return {client: float(metrics["loss"]) for client, metrics in metrics_by_client(answers).items()}

    def evaluate(self, names: Sequence[str], split: str) -> list[Answer]:
        """Have the named clients test their model on their images of a split, ``train`` or ``test``."""
        configure = self.federation.client_strategy.configure_evaluate
        config = ConfigRecord({"run": self.federation.id, "split": split})
        return self._answers(self._messages(configure, names, config))

    def train(self, names: Sequence[str], draws: Mapping[str, int]) -> list[Answer]:
        """Have the named clients train their model, each for the time that ``draws`` says; the answers that count."""
        with self.round.timed("train"):
            return self._accepted(self._answers(self._training_messages(names, draws)))

    def start_training(self, names: Sequence[str], draws: Mapping[str, int]) -> dict[str, str]:
        """The same without waiting: client by the number of its message."""
        with self.round.timed("train"):
            messages = self._training_messages(names, draws)
            numbers = self.grid.post(messages, timeout=self.federation.settings.round_timeout)
        return {number: self.grid.name_of(asked) for number, asked in zip(numbers, messages, strict=True)}

    def arrivals(self, numbers: Iterable[str], patience: float) -> list[Answer]:
        """Wait until some of these trainings are answered, or ``patience`` seconds; the answers that count."""
        with self.round.timed("train"):
            arrived = self.grid.arrivals(numbers, patience)
        return self._accepted(self._named(arrived))

    def waits_for(self, number: str) -> bool:
        """Whether this message is neither answered nor overdue."""
        return self.grid.waits_for(number)

    def acknowledge(self, answer: Answer, draw: int, number: int) -> None:
        """Note that a client's training number ``draw`` counts, and tell the selection, whose latest is ``number``."""
        self.federation.accepted[answer.client] = draw
        self.federation.selection.observe(number, answer.client, answer.metrics)

    def rejected(self) -> list[Rejected]:
        """What was rejected in the round so far, in the order of names."""
        return [item for item in self.grid.rejected if item.round == self.round.round]

    def note(self) -> None:
        """Note on the round what was rejected in it, and the bytes that moved since they were last noted."""
        current, traffic = self.round, self.grid.traffic
        current.rejected = self.rejected()
        current.bytes["down"] = current.bytes.get("down", 0) + traffic.down
        current.bytes["up"] = current.bytes.get("up", 0) + traffic.up
        self.grid.traffic = Traffic()

    def require(self, count: int, least: int) -> None:
        """Raise RunFailed, with what kept the others away, where fewer than ``least`` good replies are here."""
        if count >= least:
            return
        told = [f"client {item.client}: {item.reason}" for item in self.round.rejected]
        told += [f"client {name}: {reason}" for name, reason in self.round.absent.items()]
        reasons = abbreviated(told, "; ", most=MOST_TOLD)
        raise RunFailed(f"round {self.round.round}: {count} good replies, expected at least {least} ({reasons})")

    def _seconds(self, name: str) -> float:
        settings, client = self.federation.settings, self.federation.clients[name]
        rate = settings.runtime.examples_per_second * client.speed
        return client.examples * settings.local_epochs / rate

    def _training_messages(self, names: Sequence[str], draws: Mapping[str, int]) -> list[Message]:
        federation = self.federation
        records: dict[str, ArrayRecord] = {}
        for part in federation.parts.values():
            part.before_training(names)
            records |= part.message_records()
        config = ConfigRecord({"run": federation.id, "report": list(federation.selection.report)})
        return self._messages(federation.client_strategy.configure_train, names, config, records, draws)

    def _messages(
        self,
        configure: Callable[..., Iterable[Message]],
        names: Sequence[str],
        config: ConfigRecord,
        records: Mapping[str, ArrayRecord] | None = None,
        draws: Mapping[str, int] | None = None,
    ) -> list[Message]:
        """A strategy's messages to the named clients, cohort by cohort; all hold ``records`` beside."""
        made = []
        for cohort, members in self.federation.cohorts.members(names).items():
            nodes = [node for node, name in self.grid.client_names.items() if name in members]
            model, view = self.federation.cohorts.models[cohort], self.grid.only(nodes)
            for message in configure(self.round.round, model, config, view):
                # Until here all messages of a round share one content.
                content, name = RecordDict(dict(message.content)), self.grid.name_of(message)
                own = ({"draw": draws[name]} if draws else {}) | self.federation.position(name)
                for key, shared in message.content.config_records.items():
                    content[key] = ConfigRecord({**shared, **own})
                content.update(records or {})
                message.content = content
                made.append(message)
        return made

    def _answers(self, messages: Sequence[Message]) -> list[Answer]:
        return self._named(self.grid.answers(messages, timeout=self.federation.settings.round_timeout))

    def _named(self, pairs: Iterable[tuple[Message, Message]]) -> list[Answer]:
        return [Answer(self.grid.name_of(asked), asked.metadata.message_id, reply) for asked, reply in pairs]

    def _accepted(self, answers: Sequence[Answer]) -> list[Answer]:
        """The answers to training that no part rejects."""
        norms = {answer.number: self.grid.norms.pop(answer.number) for answer in answers}
        reasons: dict[str, str] = {}
        for part in self.federation.parts.values():
            reasons |= part.reject({number: norm for number, norm in norms.items() if number not in reasons})
        for answer in answers:
            if reason := reasons.get(answer.number):
                self.grid.reject(answer.client, reason)
        return [answer for answer in answers if answer.number not in reasons]


def metrics_by_client(answers: Iterable[Answer]) -> dict[str, dict[str, Any]]:
    """What each client measured, in the order of names."""
    return {answer.client: answer.metrics for answer in sorted(answers, key=lambda answer: answer.client)}
