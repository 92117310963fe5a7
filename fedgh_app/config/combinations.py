"""Which choices do not go together, and why. Everything that is not refused here combines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from omegaconf import DictConfig

from fedgh_app.errors import UserError

Condition = Callable[[DictConfig], bool]


@dataclass(frozen=True)
class Refusal:
    """Two choices that mean nothing together.

    Attributes:
        first: what the one is called on the command line.
        second: what the other is called.
        applies: whether a config has both.
        reason: why, and what would do instead.
    """

    first: str
    second: str
    applies: Condition
    reason: str


def _builds(group: str, name: str) -> Condition:
    return lambda config: str(config[group].get("_target_")).endswith(f".{name}")


def _is(group: str, name: str) -> Condition:
    return lambda config: bool(config[group].get("name") == name)


def _both(*conditions: Condition) -> Condition:
    return lambda config: all(condition(config) for condition in conditions)


def _not(condition: Condition) -> Condition:
    return lambda config: not condition(config)


def _partial(config: DictConfig) -> bool:
    """Whether some clients sit out some rounds."""
    return not (_builds("selection", "Random")(config) and config.selection.fraction == 1)


def _plain_sgd(config: DictConfig) -> bool:
    node = config.optimizer
    extras = [node.get(key) for key in ("momentum", "weight_decay", "nesterov")]
    return str(node._target_) == "torch.optim.SGD" and not any(extras)


def _fewest(config: DictConfig) -> int:
    """Replies that a robust rule needs at least (`strategies.robust`); 1 for the others."""
    least = {"Krum": 2, "MultiKrum": 2, "Bulyan": 4}.get(str(config.strategy._target_).rpartition(".")[2])
    return 1 if least is None else least * int(config.strategy.num_malicious_nodes) + 3


def _edge(config: DictConfig) -> str:
    return str(config.topology.edge_strategy._target_)


def _fedcdw(config: DictConfig) -> bool:
    return _builds("strategy", "FedCDW")(config) or (edges(config) and _edge(config).endswith(".FedCDW"))


def _odd_at_the_edge(config: DictConfig) -> bool:
    return _edge(config).endswith(".FedDyn") or config.topology.edge_strategy.get("weighting") == "GradVac"


feddyn, dyn = _builds("strategy", "FedDyn"), _builds("objective", "Dyn")
scaffold = _builds("objective", "Scaffold")
asynchronous = _builds("mode", "Async")
clustered, edges = _is("clustering", "finch"), _is("topology", "edge_cloud")
integral_head, integral_loss = (lambda config: config.model.get("head") == "integral"), _builds("loss", "IntegralLoss")
taught = _builds("teacher", "HHD")
central = _is("privacy", "central")
private = _not(_is("privacy", "none"))
distils, fedpav = _is("distillation", "server"), _builds("sharing", "FedPav")


def is_central(config: DictConfig) -> bool:
    """Whether the server of such a run holds one whole model: nothing stays on the clients, and all share one."""
    return keeps_nothing(config) and config.clustering.name == "none"


def fedbn(config: DictConfig) -> bool:
    """Whether BatchNorm stays on the clients."""
    return _builds("sharing", "FedBN")(config)


def keeps_nothing(config: DictConfig) -> bool:
    """Whether clients send all of their model (``sharing=all``)."""
    return str(config.sharing._target_).endswith(".All")


def optimises(config: DictConfig) -> bool:
    """Whether there is a server optimizer."""
    return config.server_optimizer._target_ is not None


def gradvac(config: DictConfig) -> bool:
    """Whether the strategy keeps state by the place of a client in the round."""
    return bool(config.strategy.get("weighting") == "GradVac")


REFUSALS = (
    Refusal(
        "model.head=integral",
        "a loss of heatmaps",
        _both(integral_head, _not(integral_loss)),
        "its keypoint is the expectation of the map's softmax, which such a loss does not train; "
        "expected loss=integral",
    ),
    Refusal(
        "loss=integral",
        "model.head=heatmap",
        _both(integral_loss, _not(integral_head)),
        "it trains the expectation of the map's softmax, which this head's keypoints are not read by; "
        "expected model.head=integral",
    ),
    Refusal(
        "teacher=hhd",
        "model.head=heatmap",
        _both(taught, _not(integral_head)),
        "it shapes the implicit heatmap that an integral keypoint is the mean of; "
        "expected model.head=integral loss=integral",
    ),
    Refusal(
        "teacher=hhd",
        "dataset with members",
        _both(taught, lambda config: bool(config.dataset.get("members"))),
        "a teacher finds one set of keypoints, and these clients have several; expected one data set",
    ),
    Refusal(
        "strategy=feddyn",
        "another objective",
        _both(feddyn, _not(dyn)),
        "the server's half of FedDyn corrects what the clients' half adds; expected objective=dyn",
    ),
    Refusal(
        "objective=dyn",
        "another strategy",
        _both(dyn, _not(feddyn)),
        "the clients' half of FedDyn needs the server's; expected strategy=feddyn",
    ),
    Refusal(
        "strategy.alpha",
        "another objective.alpha",
        _both(feddyn, dyn, lambda config: config.strategy.alpha != config.objective.alpha),
        "both halves of FedDyn need the same; set strategy.alpha, which the objective follows",
    ),
    Refusal(
        "strategy=feddyn",
        "mode=async",
        _both(feddyn, asynchronous),
        "FedDyn's server state counts every update once, against the model of its own round; expected mode=sync",
    ),
    Refusal(
        "strategy=feddyn",
        "topology=edge_cloud",
        _both(feddyn, edges),
        "FedDyn's server state is a sum over clients, which the cloud does not see; expected topology=flat",
    ),
    Refusal(
        "strategy=feddyn",
        "clustering=finch",
        _both(feddyn, clustered),
        "FedDyn's server state belongs to one model, and clusters come and go; expected clustering=none",
    ),
    Refusal(
        "strategy=feddyn",
        "server_optimizer",
        _both(feddyn, optimises),
        "FedDyn's step is not a gradient but the minimum of its own objective; expected server_optimizer=none",
    ),
    Refusal(
        "objective=scaffold",
        "optimizer other than plain SGD",
        _both(scaffold, _not(_plain_sgd)),
        "SCAFFOLD reads the mean gradient off the update, which holds for plain SGD alone; "
        "expected optimizer=sgd optimizer.momentum=0",
    ),
    Refusal(
        "objective=scaffold",
        "schedule.final_fraction=0",
        _both(scaffold, lambda config: config.schedule.get("final_fraction") == 0),
        "SCAFFOLD divides the update by the learning rate, which would reach 0; "
        "expected a schedule.final_fraction above 0",
    ),
    Refusal(
        "objective=scaffold",
        "mode=async",
        _both(scaffold, asynchronous),
        "SCAFFOLD's control variate is the mean gradient at one model, and clients here start from many; "
        "expected mode=sync",
    ),
    Refusal(
        "objective=scaffold",
        "topology=edge_cloud",
        _both(scaffold, edges),
        "SCAFFOLD's control variate is the mean gradient at one model, and each edge has its own; "
        "expected topology=flat",
    ),
    Refusal(
        "objective=scaffold",
        "clustering=finch",
        _both(scaffold, clustered),
        "SCAFFOLD's control variate is the mean gradient at one model, and each cluster has its own; "
        "expected clustering=none",
    ),
    Refusal(
        "strategy.weighting=GradVac",
        "partial participation",
        _both(gradvac, _partial),
        "GradVac remembers every pair of clients by their place in the round; "
        "expected selection=random selection.fraction=1",
    ),
    Refusal(
        "strategy.weighting=GradVac",
        "mode=async",
        _both(gradvac, asynchronous),
        "GradVac remembers every pair of clients by their place in the round; expected mode=sync",
    ),
    Refusal(
        "strategy.weighting=GradVac",
        "clustering=finch",
        _both(gradvac, clustered),
        "GradVac remembers every pair of clients by their place in the round; expected clustering=none",
    ),
    Refusal(
        "strategy=krum, multikrum or bulyan",
        "clustering=finch",
        _both(clustered, lambda config: _fewest(config) > 1),
        "a cluster may be smaller than the three clients that the rule needs at least; expected clustering=none",
    ),
    Refusal(
        "strategy=krum, multikrum or bulyan",
        "a small mode.buffer",
        _both(asynchronous, lambda config: _fewest(config) > max(1, config.mode.buffer)),
        "the rule needs 2 f + 3 (Bulyan: 4 f + 3) updates, f being strategy.num_malicious_nodes; "
        "expected a mode.buffer of at least that",
    ),
    Refusal(
        "strategy=krum, multikrum or bulyan",
        "few topology.edges",
        _both(
            edges, lambda config: _fewest(config) > max(1, len(config.topology.members or range(config.topology.edges)))
        ),
        "the cloud's rule needs 2 f + 3 (Bulyan: 4 f + 3) edges, f being strategy.num_malicious_nodes; "
        "expected at least that many, or the rule at the edges: strategy@topology.edge_strategy=krum strategy=fedavg",
    ),
    Refusal(
        "topology.edge_strategy",
        "feddyn or GradVac",
        _both(edges, _odd_at_the_edge),
        "their state belongs to one model and the same clients in every round, and the edges take turns; "
        "expected another",
    ),
    Refusal(
        "strategy=fedcdw",
        "another topology.edge_strategy",
        _both(edges, _builds("strategy", "FedCDW"), lambda config: not _edge(config).endswith(".FedCDW")),
        "clients measure the cosine distance only where the rule at the edge asks; "
        "expected strategy@topology.edge_strategy=fedcdw",
    ),
    Refusal(
        "runtime=deployment",
        "another partition than site",
        _both(_is("runtime", "deployment"), lambda config: config.partition._target_ is not None),
        "sites hold their own images, which nobody can deal out anew; expected partition=site",
    ),
    Refusal(
        "clustering=finch",
        "topology=edge_cloud",
        _both(clustered, edges),
        "both say whose updates are aggregated together; expected one of them",
    ),
    Refusal(
        "clustering=finch",
        "server_optimizer",
        _both(clustered, optimises),
        "an optimizer's state belongs to one model, and clusters come and go; expected server_optimizer=none",
    ),
    Refusal(
        "topology=edge_cloud",
        "mode=async",
        _both(edges, asynchronous),
        "an edge round waits for the clients of the edge; expected mode=sync",
    ),
    Refusal(
        "distillation.output=outputs",
        "sharing=fedpav",
        _both(distils, fedpav, lambda config: config.distillation.output == "outputs"),
        "the server has no client's head, so no outputs; expected distillation.output=features",
    ),
    Refusal(
        "privacy",
        "runtime=centralised or local",
        _both(private, lambda config: config.runtime.name in ("centralised", "local")),
        "one client alone sends no updates to hide; expected privacy=none",
    ),
    Refusal(
        "privacy",
        "running statistics that are shared",
        _both(private, _not(fedbn), lambda config: config.model.get("norm") != "group"),
        "noise makes a variance negative; expected model.norm=group, or sharing=fedbn",
    ),
    Refusal(
        "privacy",
        "objective=scaffold",
        _both(private, scaffold),
        "its control variate is read off single updates, divided by a learning rate, and sent to all: the noise of the "
        "mean does not cover it, noise of each client's own drowns it; expected another objective",
    ),
    Refusal(
        "privacy",
        "selection other than random",
        _both(private, _not(_builds("selection", "Random"))),
        "who trains would tell of the clients' losses, which no noise covers; expected selection=random",
    ),
    Refusal(
        "privacy",
        "strategy=fedcdw",
        _both(private, _fedcdw),
        "its weights would tell of the clients' cosine distances, which no noise covers; expected another strategy",
    ),
    Refusal(
        "privacy=central",
        "strategy other than fedavg",
        _both(central, _not(_builds("strategy", "FedAvg"))),
        "noise and ε are calibrated to a mean, in which no update counts more than another; expected strategy=fedavg "
        "strategy.equal_weights=true, or privacy=local, which goes with any rule",
    ),
    Refusal(
        "privacy=central",
        "strategy.equal_weights=false",
        _both(central, lambda config: not config.strategy.get("equal_weights")),
        "noise and ε are calibrated to a mean, in which no update counts more than another; expected "
        "strategy.equal_weights=true",
    ),
    Refusal(
        "privacy=central",
        "mode=async",
        _both(central, asynchronous),
        "how many updates are aggregated, and how stale, depends on the clients, and the noise does not; "
        "expected mode=sync",
    ),
    Refusal(
        "privacy=central",
        "topology=edge_cloud",
        _both(central, edges),
        "clients would be sent their edge's model, to which no noise was added; expected topology=flat",
    ),
    Refusal(
        "privacy=central",
        "clustering=finch",
        _both(central, clustered),
        "the clusters would tell of single updates, to which no noise was added; expected clustering=none",
    ),
    Refusal(
        "privacy=central",
        "distillation=server",
        _both(central, distils),
        "single clients' models teach, to which no noise was added; expected distillation=none",
    ),
    Refusal(
        "init",
        "sharing=fedbn",
        lambda config: config.init is not None and fedbn(config),
        "clients start from BatchNorm layers of their own, which would not fit the trained rest; "
        "expected init=null, or sharing=all",
    ),
    Refusal(
        "model.norm=group",
        "sharing=fedbn",
        lambda config: config.model.get("norm") == "group" and fedbn(config),
        "there is no BatchNorm layer to stay on the clients; expected model.norm=batch, or sharing=all",
    ),
    Refusal(
        "dataset with members",
        "sharing other than fedpav",
        _both(lambda config: bool(config.dataset.get("members")), _not(fedpav)),
        "clients with different keypoints cannot share a head; expected sharing=fedpav",
    ),
    Refusal(
        "evaluate.clients_every=0",
        "no model of all clients",
        lambda config: config.evaluate.clients_every == 0 and not is_central(config),
        "where clients keep a part of the model, or each cluster has its own, nobody else can evaluate it; "
        "expected at least 1",
    ),
)


def check_combinations(config: DictConfig) -> None:
    """Refuse (UserError) choices that mean nothing together, with the reason."""
    for refusal in REFUSALS:
        if refusal.applies(config):
            raise UserError(f"{refusal.first} with {refusal.second}: {refusal.reason}")
