"""Federated averaging, and the one pipeline that every strategy here shares."""

import time
from collections.abc import Iterable, Mapping
from logging import INFO
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from strategies.diagnostics import Diagnostics, describe_clients, describe_geometry, describe_norms, describe_weights
from strategies.gaussian import GaussianMechanism
from strategies.randomness import generator
from strategies.threads import one_thread
from strategies.updates import ClientUpdates, by_name
from strategies.weights import Weights

State = dict[str, Any]  # what a strategy carries from round to round: tensors, and what JSON can hold

_POLL_SECONDS = 0.5


class FedAvg(flower.FedAvg):
    """Federated averaging (McMahan et al., "Communication-Efficient Learning of Deep Networks", 2017): c = p.

    Also the base of the other rules. Each says in :meth:`weigh` how updates become weights; the rest is here:
    ``replies -> ClientUpdates -> weights c -> w + η Σ c_k Δ_k``. A rule that is no weighting says in
    :meth:`next_model` what it is instead.

    Clients go by the names in ``client_names`` (node id to name, set by whoever asked them; a node without a
    name goes by its id): sampling, order and all state are by name, since node ids are random per run.

    Parameters
    ----------
    fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes : as in Flower;
        by default every node that is connected takes part, be it one.
    server_learning_rate : η. Scales parameters only; running statistics are always averaged.
    seed : what sampling and every random choice of a rule depend on, together with the round.
    node_timeout : seconds to wait for enough nodes before giving up.
    equal_weights : every client counts alike, however many examples it has: c = 1 / K.
    report_conflicts : also measure cosines, norms and conflicts each round when the rule itself needs no
        Gramian. It costs a second pass over the replies.
    flower_options : the other keyword arguments of Flower's ``FedAvg``.

    Attributes
    ----------
    client_names : node id to client name.
    diagnostics : what the latest aggregation saw, JSON-able; empty before the first.
    mechanism : clips the updates and adds noise to their mean (central differential privacy), set together with
        ``expected``; None for neither. Only with equal weights, to which the noise is calibrated.
    expected : how many updates the mean with noise is over, whoever of these clients answers.
    """

    needs_gramian = False
    conflict_threshold = 0.0

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 1,
        min_evaluate_nodes: int = 1,
        min_available_nodes: int = 1,
        *,
        server_learning_rate: float = 1.0,
        equal_weights: bool = False,
        seed: int = 0,
        node_timeout: float = 60.0,
        report_conflicts: bool = True,
        **flower_options: Any,
    ) -> None:
        super().__init__(
            fraction_train,
            fraction_evaluate,
            min_train_nodes,
            min_evaluate_nodes,
            min_available_nodes,
            **flower_options,
        )
        if not 0 < server_learning_rate < float("inf"):
            raise ValueError(f"server_learning_rate is a number > 0, got {server_learning_rate}")
        if equal_weights and (type(self).weigh, type(self).next_model) != (FedAvg.weigh, FedAvg.next_model):
            raise ValueError(f"equal_weights is of FedAvg, and {type(self).__name__} has weights of its own")
        self.server_learning_rate = server_learning_rate
        self.equal_weights = equal_weights
        self.mechanism: GaussianMechanism | None = None
        self.expected = 0
        self.seed = seed
        self.node_timeout = node_timeout
        self.report_conflicts = report_conflicts
        self.client_names: dict[int, str] = {}
        self.diagnostics: Diagnostics = {}
        self._sent: dict[str, Array] | None = None

    def weigh(self, server_round: int, updates: ClientUpdates) -> Weights:
        """Turn the round's updates into weights."""
        shares = torch.full_like(updates.shares, 1 / len(updates)) if self.equal_weights else updates.shares
        if self.mechanism is None:
            return Weights(convex=shares, combination=shares)
        if not self.equal_weights:
            raise ValueError("the noise is calibrated to equal_weights=True")
        return self.mechanism.protect(updates, self.expected)

    def train_config(self, config: ConfigRecord) -> ConfigRecord:
        """Return what clients are sent beside the model; a rule that wants a report from them asks here."""
        return config

    def evaluated(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the model to evaluate and to keep, given the latest one that clients train: for most rules itself."""
        return arrays

    def state_dict(self) -> State:
        """Return what the strategy carries from round to round: nested dicts, JSON-able but for tensors."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Take up the state that :meth:`state_dict` returned."""

    def summary(self) -> None:
        """Log the configuration of the strategy."""
        super().summary()
        log(INFO, "\t├──> Server learning rate: %s", self.server_learning_rate)
        log(INFO, "\t└──> Seed: %s", self.seed)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model to the round's clients, and keep it: updates are taken against it."""
        if self.fraction_train == 0.0:
            return []
        node_ids = self._sample(grid, self.fraction_train, self.min_train_nodes, "train", server_round)
        self._sent = dict(arrays)
        return self._messages(server_round, arrays, self.train_config(config), node_ids, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate against the model of the last ``configure_train``; see :meth:`aggregate`."""
        if self._sent is None:
            raise RuntimeError("aggregate_train needs the model that clients started from: call configure_train first")
        return self.aggregate(server_round, self._sent, replies)

    @one_thread()
    def aggregate(
        self, server_round: int, sent: Mapping[str, Array], replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next model and the clients' averaged metrics; (None, None) without a valid reply.

        Parameters
        ----------
        server_round : what random choices depend on, and what the diagnostics are filed under.
        sent : the model that the clients started from, by tensor.
        replies : in any order; those of one client in theirs. Never modified.

        Raises ``ValueError`` naming the client when a reply does not fit the model that was sent.
        """
        valid, _ = self._check_and_log_replies(list(replies), is_train=True, validate=False)
        if not valid:
            return None, None
        updates = ClientUpdates(sent, valid, client_names=self.client_names, weighted_by_key=self.weighted_by_key)
        arrays, described = self.next_model(server_round, updates)
        self.diagnostics = describe_clients(server_round, updates) | described
        return arrays, self._average_metrics(updates)

    def next_model(self, server_round: int, updates: ClientUpdates) -> tuple[ArrayRecord, Diagnostics]:
        """Return the model that the updates lead to, and what there is to tell about it."""
        weights = self.weigh(server_round, updates)
        arrays = updates.combine(
            weights.combination, convex=weights.convex, learning_rate=self.server_learning_rate, shift=weights.shift
        )
        described = describe_weights(updates, weights) | dict(weights.told)
        if (self.needs_gramian or self.report_conflicts) and updates.comparable:
            described |= describe_geometry(updates, self.conflict_threshold) | describe_norms(updates, weights)
        return arrays, described

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model to the clients that evaluate it."""
        if self.fraction_evaluate == 0.0:
            return []
        node_ids = self._sample(grid, self.fraction_evaluate, self.min_evaluate_nodes, "evaluate", server_round)
        return self._messages(server_round, arrays, config, node_ids, MessageType.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the clients' averaged metrics, summed in the order of their names."""
        replies = list(replies)
        named = by_name([reply for reply in replies if not reply.has_error()], self.client_names)
        failed = [reply for reply in replies if reply.has_error()]
        return super().aggregate_evaluate(server_round, [*named, *failed])

    def _average_metrics(self, updates: ClientUpdates) -> MetricRecord:
        expected = updates.metrics[0].keys()
        for name, metrics in zip(updates.names, updates.metrics, strict=True):
            if differing := sorted(metrics.keys() ^ expected):
                raise ValueError(f"client {name!r}: metrics {differing} are not those of {updates.names[0]!r}")
        return self.train_metrics_aggr_fn([reply.content for reply in updates.replies], self.weighted_by_key)

    def _sample(self, grid: Grid, fraction: float, min_nodes: int, purpose: str, server_round: int) -> list[int]:
        """Return the node ids of the round's clients, in name order: a function of (seed, round, purpose)."""
        nodes = self._connected(grid, max(self.min_available_nodes, min_nodes))
        named = sorted((self.client_names.get(node_id, str(node_id)), node_id) for node_id in nodes)
        size = max(int(len(named) * fraction), min_nodes)
        drawn = torch.randperm(len(named), generator=generator(self.seed, purpose, server_round))[:size]
        log(INFO, "configure_%s: sampled %s nodes (out of %s)", purpose, size, len(named))
        return [named[index][1] for index in sorted(drawn.tolist())]

    def _connected(self, grid: Grid, needed: int) -> list[int]:
        deadline = time.monotonic() + self.node_timeout
        while len(nodes := list(grid.get_node_ids())) < needed:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(
                    f"{len(nodes)} of {needed} nodes connected after {self.node_timeout:g} s: "
                    "start more SuperNodes, or lower min_available_nodes and the nodes asked for"
                )
            log(INFO, "Waiting for nodes to connect: %d connected (minimum required: %d).", len(nodes), needed)
            time.sleep(min(_POLL_SECONDS, remaining))
        return nodes

    def _messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, node_ids: list[int], message_type: str
    ) -> Iterable[Message]:
        # A copy: the caller hands in the same record each round, and what a rule adds is not the caller's.
        config = ConfigRecord({**config, "server-round": server_round})
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return self._construct_messages(record, node_ids, message_type)
