"""What a run spends of its clients' privacy, and that noise is where it should be."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from conftest import CENTRAL, LOCAL
from flwr.app import Array
from killed import Killed, dying_at, model_of, rounds_of
from recording import run
from scipy import integrate, stats

from fedgh_app.assembly import client as assembly
from fedgh_app.client.boundary import check_demand
from fedgh_app.client.client import TaskClient
from fedgh_app.client_app import app as client_app
from fedgh_app.config import settings
from fedgh_app.config.compose import compose_config
from fedgh_app.errors import RunFailed, UserError
from fedgh_app.runs import storage
from fedgh_app.runtimes.launcher import launch
from fedgh_app.server.parts import privacy
from fedgh_app.server.parts.privacy import Privacy, check_shared, epsilon
from strategies.gaussian import GaussianMechanism


def renyi(noise_multiplier: float, releases: int, delta: float) -> float:
    """The usual upper bound: Rényi ε is T a / 2z² at order a (Mironov 2017), and becomes ε + log(1/δ) / (a - 1)."""
    orders = 1 + np.geomspace(1e-5, 1e5, 20_001)
    return float(np.min(releases * orders / (2 * noise_multiplier**2) + np.log(1 / delta) / (orders - 1)))


@pytest.mark.parametrize(
    ("noise_multiplier", "releases"), [(1.0, 1), (1.0, 10), (0.5, 10), (10.0, 100), (3.0, 1), (0.05, 3), (0.01, 20)]
)
def test_epsilon_is_just_below_the_bound_of_renyi_privacy(noise_multiplier: float, releases: int) -> None:
    exact, bound = epsilon(noise_multiplier, releases, 1e-5), renyi(noise_multiplier, releases, 1e-5)
    assert 0.75 * bound < exact < bound


@pytest.mark.parametrize(("noise_multiplier", "releases", "delta"), [(1.0, 1, 1e-3), (2.0, 5, 1e-2), (0.7, 1, 1e-4)])
def test_epsilon_is_where_the_definition_holds_with_equality(
    noise_multiplier: float, releases: int, delta: float
) -> None:
    """T outputs of N(0, z²) against T of N(1, z²): by their sum, whose two densities are integrated where one is more
    than e^ε times the other."""
    found = epsilon(noise_multiplier, releases, delta)
    spread = math.sqrt(releases) * noise_multiplier
    away, here = stats.norm(releases, spread), stats.norm(0, spread)

    def more(x: float) -> float:
        return max(away.pdf(x) - math.exp(found) * here.pdf(x), 0.0)

    middle = releases / 2 + found * spread**2 / releases  # from here on
    total, _ = integrate.quad(more, middle, releases + 12 * spread)
    assert total == pytest.approx(delta, rel=1e-4)


def test_epsilon_at_its_ends() -> None:
    assert epsilon(1.0, 0, 1e-5) == 0.0
    assert epsilon(1e6, 1, 1e-3) == 0.0  # δ alone covers it
    values = [epsilon(2.0, releases, 1e-5) for releases in (1, 2, 4, 8)]
    assert values == sorted(values)
    assert epsilon(2.0, 4, 1e-5) == pytest.approx(epsilon(1.0, 1, 1e-5))  # four at twice the noise are one


def group(kind: Literal["none", "central", "local"], noise_multiplier: float = 1.0) -> settings.Privacy:
    """What of the ``privacy`` group a client looks at."""
    return settings.Privacy(name=kind, noise_multiplier=noise_multiplier, delta=1e-5)


def account(kind: str, noise_multiplier: float, directory: Path) -> Privacy:
    """An account that is kept in a directory."""
    made = Privacy(kind, 1.0, noise_multiplier, 1e-5)
    made.open(directory)
    return made


def test_the_account_is_of_who_was_asked_most_often_and_outlives_a_kill(tmp_path: Path) -> None:
    central = account("central", 3.0, tmp_path)
    assert central.spent()["epsilon"] == 0.0
    central.before_training(["a", "b"])
    central.before_training(["b", "c"])
    early = central.state_dict()
    central.before_training(["b"])
    assert central.spent() == {
        "epsilon": epsilon(3.0, 3, 1e-5),
        "epsilon_round": epsilon(3.0, 1, 1e-5),
        "delta": 1e-5,
        "releases": 3,
    }
    # The checkpoint is of before the third round, whose updates the killed server had asked for.
    again = account("central", 3.0, tmp_path)
    again.load_state_dict(early)
    assert again.asked == {"a": 1, "b": 3, "c": 1}
    (tmp_path / "privacy.json").unlink()
    again = account("central", 3.0, tmp_path)
    again.load_state_dict(early)
    assert again.asked == {"a": 1, "b": 2, "c": 1}


def test_a_clients_own_noise_hides_twice_the_clipping_norm(tmp_path: Path) -> None:
    local = account("local", 4.0, tmp_path)
    local.before_training(["a"])
    assert local.spent()["epsilon"] == epsilon(2.0, 1, 1e-5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not valid JSON"),
        ("[]", "found a JSON list, expected an object"),
        ("{}", "asked: Field required; expected what the run has spent"),
        ('{"asked": 3}', "asked: .*; expected what the run has spent"),
        ('{"asked": {"a": "many"}}', r"asked\.a: .*; expected what the run has spent"),
        ('{"asked": {"a": -1}}', r"asked\.a: .*; expected what the run has spent"),
    ],
)
def test_a_damaged_account_is_named(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "privacy.json").write_text(content)
    with pytest.raises(UserError, match=rf"privacy\.json: {words}"):
        account("central", 1.0, tmp_path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("privacy.clipping_norm=0", "privacy.clipping_norm=0: expected a number above 0"),
        ("privacy.noise_multiplier=-1.0", "privacy.noise_multiplier=-1.0: expected a number above 0"),
        ("privacy.delta=1.0", "privacy.delta=1.0: expected a number above 0 and below 1"),
        ("privacy.delta=null", "privacy.delta=null: expected a number"),
        ("privacy=distributed", "privacy=distributed: no such privacy; "),
    ],
)
def test_values_that_give_no_privacy_are_refused(override: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        compose_config([*CENTRAL, override])


def releases(directory: Path) -> list[int]:
    return [line["privacy"]["releases"] for line in storage.read_lines(directory / "history.jsonl")]


class Fixed:
    """Noise that a test can add too."""

    def __init__(self) -> None:
        self.drawn: list[np.ndarray] = []

    def __call__(self, count: int) -> np.ndarray:
        self.drawn.append(np.random.default_rng(len(self.drawn)).standard_normal(count))
        return self.drawn[-1]


def norm(one: Any, other: Any) -> float:
    return math.sqrt(sum(float(np.sum((one[key].numpy() - other[key].numpy()) ** 2.0)) for key in one))


def test_a_run_with_central_noise(toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients' updates arrive as they are; the next model is their clipped mean and the noise, to the digit."""
    normal = Fixed()
    monkeypatch.setattr(
        privacy, "GaussianMechanism", lambda norm, multiplier: GaussianMechanism(norm, multiplier, normal)
    )
    overrides = [*toy, *CENTRAL, "privacy.clipping_norm=0.02", "privacy.noise_multiplier=0.5", "optimizer.lr=0.02"]
    done, grid = run([*overrides, "partition=iid", "rounds=1"], tmp_path / "run")
    sent = next(m.content["arrays"] for m in grid.sent if m.metadata.message_type == "train")
    trained = [m.content["arrays"] for m in grid.received if "arrays" in m.content]
    assert len(trained) == 4
    lengths = [norm(sent, one) for one in trained]
    assert min(lengths) > 0.02
    noise = iter(normal.drawn)
    for key, array in sent.items():
        updates = [one[key].numpy() - array.numpy() for one in trained]
        clipped = sum(update * 0.02 / length for update, length in zip(updates, lengths, strict=True)) / 4
        drawn = next(noise).reshape(array.shape) * 0.5 * 0.02 / 4
        assert np.allclose(done.arrays[key].numpy(), array.numpy() + clipped + drawn, atol=1e-7)
    assert next(noise, None) is None
    assert storage.read_json(tmp_path / "run" / "result.json")["privacy"] == {
        "epsilon": epsilon(0.5, 1, 1e-5),
        "epsilon_round": epsilon(0.5, 1, 1e-5),
        "delta": 1e-5,
        "releases": 1,
    }
    assert releases(tmp_path / "run") == [0, 1]


def test_no_client_decides_over_another_under_central_noise(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update a million times as long as the others' is clipped like them, not rejected by comparison."""
    monkeypatch.setattr(privacy, "GaussianMechanism", lambda *values: GaussianMechanism(*values, np.zeros))

    def shouting(asked: Any, context: Any) -> Any:
        reply = client_app(asked, context)
        if asked.metadata.message_type == "train" and context.node_config["partition-id"] == 3:
            arrays = reply.content["arrays"]
            for key, sent in asked.content["arrays"].items():
                arrays[key] = Array((sent.numpy() + np.float32(1e6)).astype(np.float32))
        return reply

    overrides = [*toy, *CENTRAL, "privacy.clipping_norm=0.5", "rounds=1", "partition=iid"]
    done, grid = run(overrides, tmp_path / "central", shouting)
    sent = next(m.content["arrays"] for m in grid.sent if m.metadata.message_type == "train")
    assert done.history[-1].rejected == []
    assert 0.1 < norm(sent, done.arrays) <= 0.5 + 1e-3
    rejecting, _ = run([*toy, "strategy=fedavg", "rounds=1", "partition=iid"], tmp_path / "none", shouting)
    assert [item.client for item in rejecting.history[-1].rejected] == ["3"]


def test_a_run_with_local_noise(toy: list[str], tmp_path: Path) -> None:
    """What leaves a client lies as far from its start as noise makes it, and no two runs send the same."""
    overrides = [*toy, "strategy=fedgh", "privacy=local", "sharing=fedbn", "rounds=2", "optimizer.lr=0.02"]
    overrides += ["privacy.clipping_norm=0.01", "privacy.noise_multiplier=3.0", "evaluate.central_every=0"]
    sent: list[list[dict[str, bytes]]] = []
    for name in ("one", "other"):
        done, grid = run(overrides, tmp_path / name)
        start = next(m.content["arrays"] for m in grid.sent if m.metadata.message_type == "train")
        trained = [m.content["arrays"] for m in grid.received if "arrays" in m.content][:4]
        size = sum(array.numpy().size for array in start.values())
        for one in trained:
            length = norm(start, one)  # noise of z C in each coordinate: z C √d, give or take
            assert abs(length - 0.03 * math.sqrt(size)) < 0.03 * 5 + 0.01
            assert not any("running" in key for key in one)
        sent.append([{key: array.data for key, array in one.items()} for one in trained])
        assert releases(tmp_path / name) == [0, 1, 2]
        assert done.history[-1].privacy["epsilon"] == epsilon(1.5, 2, 1e-5)
    assert all(one != other for one, other in zip(*sent, strict=True))


def test_the_clients_own_part_and_memory_have_no_noise(toy: list[str], tmp_path: Path) -> None:
    """Huge noise on what is sent; BatchNorm and FedDyn's memory, which stay, are as training left them."""
    overrides = [*toy, "strategy=feddyn", "objective=dyn", "sharing=fedbn", "evaluate.central_every=0", "rounds=1"]
    noise = ["privacy=local", "privacy.noise_multiplier=100.0", f"run_dir={tmp_path / 'noise'}"]
    run([*overrides, *noise], tmp_path / "noise")
    run([*overrides, f"run_dir={tmp_path / 'none'}"], tmp_path / "none")
    kept = {name: sorted((tmp_path / name / "clients").glob("*")) for name in ("noise", "none")}
    assert len(kept["noise"]) == 4
    assert [file.name for file in kept["noise"]] == [file.name for file in kept["none"]]
    for one, other in zip(kept["noise"], kept["none"], strict=True):
        found, expected = (storage.load_model(file)[0] for file in (one, other))
        assert all(np.array_equal(found[key].numpy(), expected[key].numpy()) for key in found)


@pytest.mark.parametrize("kind", ["central", "local"])
def test_a_resumed_run_has_not_forgotten_what_it_spent(
    kind: str, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in round 2: its updates had been asked for, and the resumed run asks for them again. But for the noise,
    which has to be another, it ends with the same model."""
    for module in (privacy, assembly):
        monkeypatch.setattr(module, "GaussianMechanism", lambda *values: GaussianMechanism(*values, np.zeros))
    overrides = [*toy, *(CENTRAL if kind == "central" else LOCAL), "rounds=3", "privacy.clipping_norm=0.01"]
    with pytest.raises(Killed):
        run([*overrides, f"run_dir={tmp_path / 'run'}"], tmp_path / "run", dying_at(2, 3))
    assert len(rounds_of(tmp_path / "run")) == 2
    run([*overrides, f"resume={tmp_path / 'run'}"], tmp_path / "run")
    assert releases(tmp_path / "run") == [0, 1, 3, 4]
    run(overrides, tmp_path / "whole")
    assert model_of(tmp_path / "run") == model_of(tmp_path / "whole")


def test_who_sits_out_spends_nothing(toy: list[str], tmp_path: Path) -> None:
    """And the noise is calibrated to those who are asked."""
    done, _ = run([*toy, *CENTRAL, "selection.fraction=0.5", "partition=iid", "rounds=4"], tmp_path / "run")
    asked = storage.read_json(tmp_path / "run" / "privacy.json")["asked"]
    assert sum(asked.values()) == 8
    assert done.history[-1].privacy["releases"] == max(asked.values())
    assert done.strategy.expected == 2


def test_the_clients_of_an_edge_spend_once_for_each_edge_round(toy: list[str], tmp_path: Path) -> None:
    edges = ["topology=edge_cloud", "topology.edges=2", "topology.edge_rounds=3", "rounds=1"]
    done, _ = run([*toy, *LOCAL, *edges], tmp_path / "run")
    assert done.history[-1].privacy["releases"] == 3


@pytest.mark.parametrize(
    ("privacy", "found"), [(group("none"), 0.0), (group("local", 0.5), 0.5), (group("central", 2.0), 0.0)]
)
def test_a_site_that_demands_noise_does_not_train_with_less(privacy: settings.Privacy, found: float) -> None:
    check_demand(privacy, {})
    check_demand(privacy, {"noise-multiplier": found})
    with pytest.raises(RunFailed, match=rf"a noise multiplier of {found:g}; its node config expects at least noise-"):
        check_demand(privacy, {"noise-multiplier": 1.0})
    with pytest.raises(UserError, match="noise-multiplier=much: expected a number, in the site's node config"):
        check_demand(privacy, {"noise-multiplier": "much"})


def test_the_demand_of_a_site_is_heard(toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through its ClientApp: a run without noise of its own gets nothing from that site."""

    def demanding(asked: Any, context: Any) -> Any:
        context.node_config["noise-multiplier"] = 1.0
        return client_app(asked, context)

    fitted: list[str] = []
    monkeypatch.setattr(TaskClient, "fit", lambda self, *_: fitted.append(self.site.name))
    with pytest.raises(RunFailed, match="privacy=none: updates of this site get a noise multiplier of 0"):
        run([*toy, "rounds=1"], tmp_path / "run", demanding)
    assert not fitted


def test_what_is_no_parameter_is_not_shared_with_noise() -> None:
    shared = {"w": Array(np.zeros(2, np.float32)), "n.running_var": Array(np.ones(2, np.float32))}
    with pytest.raises(UserError, match=r"privacy: n\.running_var would be shared, to which noise means nothing"):
        check_shared(shared)
    check_shared({"w": shared["w"]})


def test_by_the_command_with_card_and_plot(toy: list[str], tmp_path: Path) -> None:
    found = launch([*toy, *CENTRAL, "privacy.noise_multiplier=2.0", "rounds=2"], tmp_path / "run", quiet=True)
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    expected = epsilon(2.0, 2, 1e-5)
    assert found.privacy["epsilon"] == expected
    assert f"Central differential privacy: ε = {expected:.3g} at δ = 1e-05 for a client with all its images" in card
    assert "privacy=central (clipping_norm=1.0, noise_multiplier=2.0, delta=1e-05)" in card
    assert (tmp_path / "run" / "plots" / "epsilon.png").stat().st_size > 1000
