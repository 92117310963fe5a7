import math

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from fedgh_app.config.choices import values_of
from fedgh_app.errors import UserError
from fedgh_app.vision.objectives import Dyn, Plain, Prox, Received, Scaffold

ALL = [Plain(), Prox(0.5), Dyn(0.5), Scaffold()]


class Point(nn.Module):
    """A model that is its parameter w, (2,), beside one that stays local and a buffer."""

    def __init__(self, *w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        self.local = nn.Parameter(torch.tensor([7.0], dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(3))


def received(w, memory=None, control=None):
    def named(values):
        return {} if values is None else {"w": torch.tensor(values, dtype=torch.float64)}

    return Received(named(w), named(memory), {"control": named(control)})


def value_and_gradient(penalty, model):
    """Of the penalty at the model's parameters: a number, and its gradient by w."""
    model.zero_grad()
    value = penalty(model)
    assert value.shape == ()
    value.backward()
    assert model.local.grad is None
    return value.item(), model.w.grad.tolist()


def minimise(objective, known, gradient, w):
    """The minimum of one client's objective, by gradient descent on loss gradient + the penalty's own gradient."""
    model = Point(w)
    penalty = objective.penalty(known)
    for _ in range(200):
        pull = value_and_gradient(penalty, model)[1][0]
        with torch.no_grad():
            model.w -= 0.2 * (gradient(model.w) + pull)
    return model.w.item()


def test_plain_adds_nothing():
    assert Plain().penalty(received([1.0, 2.0])) is None
    assert Prox(0).penalty(received([1.0, 2.0])) is None


def test_prox_by_hand():
    # mu = 0.5 at w = (3, 1), w^t = (1, -2): 0.25 ((3 - 1)^2 + (1 + 2)^2) = 0.25 * 13; gradient 0.5 (2, 3).
    penalty = Prox(0.5).penalty(received([1.0, -2.0]))
    assert value_and_gradient(penalty, Point(3.0, 1.0)) == (3.25, [1.0, 1.5])
    assert value_and_gradient(penalty, Point(1.0, -2.0)) == (0.0, [0.0, 0.0])


def test_prox_holds_two_clients_between_their_own_minimum_and_the_received_model():
    # Clients with the losses (1/2)(w - 4)^2 and (3/2)(w + 2)^2 start at w^t = 1 with mu = 1:
    # w - 4 + (w - 1) = 0 gives 2.5, and 3 (w + 2) + (w - 1) = 0 gives -1.25.
    known = received([1.0])
    assert minimise(Prox(1.0), known, lambda w: w - 4, 1.0) == pytest.approx(2.5)
    assert minimise(Prox(1.0), known, lambda w: 3 * (w + 2), 1.0) == pytest.approx(-1.25)


def test_dyn_by_hand():
    # alpha = 0.5, h = (2, 4), w = (3, 1), w^t = (1, -2): 0.25 * 13 - (6 + 4); gradient 0.5 (2, 3) - (2, 4).
    known = received([1.0, -2.0], memory=[2.0, 4.0])
    assert value_and_gradient(Dyn(0.5).penalty(known), Point(3.0, 1.0)) == (3.25 - 10, [-1.0, -2.5])
    # The first time h = 0, which leaves FedProx's term.
    assert value_and_gradient(Dyn(0.5).penalty(received([1.0, -2.0])), Point(3.0, 1.0)) == (3.25, [1.0, 1.5])
    # h - alpha Delta = (2, 4) - 0.5 (2, 3).
    trained = {"w": torch.tensor([3.0, 1.0]), "local": torch.tensor([9.0])}
    after = Dyn(0.5).next_memory(known, trained, steps=1, learning_rate=0.1)
    assert {name: value.tolist() for name, value in after.items()} == {"w": [1.0, 2.5]}


def test_two_rounds_of_feddyn_with_two_clients_by_hand():
    # L_1 = (1/2) w^2 and L_2 = (3/2)(w - 4)^2; their sum is least where w + 3 (w - 4) = 0, at w = 3. alpha = 1, from 0.
    # A client's minimum: a (w - b) - h + (w - w^t) = 0, w = (a b + h + w^t) / (a + 1).
    gradients = [lambda w: w, lambda w: 3 * (w - 4)]
    memories: list = [None, None]
    objective, w, server_h = Dyn(1.0), 0.0, 0.0
    # Round 1: w_1 = 0, w_2 = (12 + 0 + 0) / 4 = 3; h_1 = 0, h_2 = -3, the gradients there.
    #   Server: h = -(1/2)(0 + 3) = -1.5, w = 1.5 + 1.5 = 3.
    # Round 2: w_1 = (0 + 0 + 3) / 2 = 1.5, w_2 = (12 - 3 + 3) / 4 = 3; h_1 = 0 + 1.5, h_2 = -3 - 0.
    #   Server: h = -1.5 - (1/2)(-1.5 + 0) = -0.75, w = 2.25 + 0.75 = 3: the optimum stays.
    expected = [([0.0, 3.0], [0.0, -3.0], 3.0), ([1.5, 3.0], [1.5, -3.0], 3.0)]
    for locals_, hs, next_w in expected:
        known = [received([w], None if memory is None else [memory]) for memory in memories]
        found = [minimise(objective, of, gradient, w) for of, gradient in zip(known, gradients, strict=True)]
        assert found == pytest.approx(locals_)
        for k, value in enumerate(found):
            trained = {"w": torch.tensor([value], dtype=torch.float64)}
            memories[k] = objective.next_memory(known[k], trained, steps=200, learning_rate=0.2)["w"].item()
        assert memories == pytest.approx(hs)
        server_h -= sum(value - w for value in found) / 2
        w = sum(found) / 2 - server_h
        assert w == pytest.approx(next_w)


def test_scaffold_by_hand():
    # c = (0.5, 1), c_k = (0.2, 3), w = (3, 1): <(0.3, -2), (3, 1)> = -1.1, gradient c - c_k whatever w is.
    known = received([1.0, -2.0], memory=[0.2, 3.0], control=[0.5, 1.0])
    value, gradient = value_and_gradient(Scaffold().penalty(known), Point(3.0, 1.0))
    assert value == pytest.approx(-1.1) and gradient == pytest.approx([0.3, -2.0])
    # c_k - c - Delta / (4 * 0.5) = (-0.3, 2) - (2, 3) / 2.
    after = Scaffold().next_memory(known, {"w": torch.tensor([3.0, 1.0])}, steps=4, learning_rate=0.5)
    assert after["w"].tolist() == pytest.approx([-1.3, 0.5])


def test_scaffold_starts_with_variates_of_zero():
    assert Scaffold().penalty(received([1.0])) is None
    first = received([1.0], control=[0.5])
    assert value_and_gradient(Scaffold().penalty(first), Point(3.0)) == (1.5, [0.5])
    # 0 - 0.5 - (3 - 1) / (2 * 0.1)
    after = Scaffold().next_memory(first, {"w": torch.tensor([3.0])}, steps=2, learning_rate=0.1)
    assert after["w"].tolist() == pytest.approx([-10.5])
    without_control = received([1.0], memory=[0.25])
    assert value_and_gradient(Scaffold().penalty(without_control), Point(2.0)) == (-0.5, [-0.25])


def test_two_steps_of_scaffold_with_two_clients_by_hand():
    # From w = 1 with c = 0.5, lr = 0.1. Client 1: loss (1/2) w^2, c_1 = 0.2; steps along w + 0.3:
    #   1 - 0.13 = 0.87, 0.87 - 0.117 = 0.753. Its own gradients were 1 and 0.87: next c_1 = 0.935.
    # Client 2: loss (3/2)(w - 2)^2, c_2 = 0.8; steps along 3 (w - 2) - 0.3:
    #   1 + 0.33 = 1.33, 1.33 + 0.231 = 1.561. Its own gradients were -3 and -2.01: next c_2 = -2.505.
    clients = [(lambda w: w, 0.2, 0.753, 0.935), (lambda w: 3 * (w - 2), 0.8, 1.561, -2.505)]
    for gradient, c_k, trained, next_c_k in clients:
        known = received([1.0], memory=[c_k], control=[0.5])
        model, penalty = Point(1.0), Scaffold().penalty(known)
        for _ in range(2):
            pull = value_and_gradient(penalty, model)[1][0]
            with torch.no_grad():
                model.w -= 0.1 * (gradient(model.w) + pull)
        assert model.w.item() == pytest.approx(trained)
        after = Scaffold().next_memory(known, dict(model.named_parameters()), steps=2, learning_rate=0.1)
        assert after["w"].item() == pytest.approx(next_c_k)
        assert not after["w"].requires_grad


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(1e-3, 1))
def test_scaffolds_next_memory_is_the_mean_of_the_clients_own_gradients(seed, steps, learning_rate):
    generator = torch.Generator().manual_seed(seed)
    start, c, c_k, *own = torch.randn(3 + steps, 5, generator=generator, dtype=torch.float64)
    w = start.clone()
    for gradient in own:
        w -= learning_rate * (gradient - c_k + c)
    known = Received({"w": start}, {"w": c_k}, {"control": {"w": c}})
    after = Scaffold().next_memory(known, {"w": w}, steps=steps, learning_rate=learning_rate)
    torch.testing.assert_close(after["w"], torch.stack(own).mean(0), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(1e-3, 10))
def test_gradients_of_the_terms_are_the_papers(seed, strength):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double()
    start, h, c, c_k = ({name: torch.randn_like(value) for name, value in model.named_parameters()} for _ in range(4))
    expected = {
        Prox(strength): lambda name, w: strength * (w - start[name]),
        Dyn(strength): lambda name, w: strength * (w - start[name]) - h[name],
        Scaffold(): lambda name, w: c[name] - c_k[name],
    }
    for objective, gradient in expected.items():
        memory = h if isinstance(objective, Dyn) else c_k
        model.zero_grad()
        objective.penalty(Received(start, memory, {"control": c}))(model).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, gradient(name, parameter.detach()))


@pytest.mark.parametrize("objective", ALL, ids=lambda objective: type(objective).__name__)
def test_what_an_objective_keeps_is_what_it_says_it_keeps(objective):
    known = received([1.0, 2.0], memory=[0.1, 0.2], control=[0.3, 0.4])
    parts = [known.parameters, known.memory, *known.extra.values()]
    copies = [{name: value.clone() for name, value in part.items()} for part in parts]
    model = Point(3.0, 4.0)
    if (penalty := objective.penalty(known)) is not None:
        penalty(model).backward()
    after = objective.next_memory(known, dict(model.named_parameters()), steps=1, learning_rate=0.1)
    assert set(after) == ({"w"} if objective.has_memory else set())
    # What was received is an input: the client still needs it when the server refuses the update.
    for part, copy in zip(parts, copies, strict=True):
        assert all(torch.equal(value, copy[name]) for name, value in part.items())
    assert objective.has_memory == isinstance(objective, Dyn | Scaffold)


@pytest.mark.parametrize("objective", [Dyn(0.5), Scaffold()])
def test_a_memory_of_another_model_is_refused(objective):
    known = Received({"w": torch.zeros(2)}, {"v": torch.zeros(2)})
    with pytest.raises(ValueError, match="'w'"):
        objective.penalty(known)
    with pytest.raises(ValueError, match="'w'"):
        objective.next_memory(known, {"w": torch.ones(2)}, steps=1, learning_rate=0.1)


def test_memory_is_taken_in_the_dtype_of_the_parameters():
    known = Received({"w": torch.zeros(1, dtype=torch.float64)}, {"w": torch.full((1,), 0.5)})
    assert value_and_gradient(Dyn(1.0).penalty(known), Point(0.0)) == (0.0, [-0.5])


@pytest.mark.parametrize("steps, learning_rate", [(0, 0.1), (3, 0.0), (3, math.nan)])
def test_scaffold_cannot_divide_by_no_step(steps, learning_rate):
    with pytest.raises(UserError, match=r"^objective=scaffold: found .*, expected .*$"):
        Scaffold().next_memory(received([1.0]), {"w": torch.zeros(1)}, steps=steps, learning_rate=learning_rate)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Prox(-0.1),
        lambda: Prox(math.nan),
        lambda: Prox(math.inf),
        lambda: Dyn(0),
        lambda: Dyn(-1.0),
        lambda: Dyn(math.nan),
    ],
)
def test_senseless_values_are_refused(build):
    with pytest.raises(UserError, match=r"^objective\.\w+: found .*, expected .*$"):
        build()


@pytest.mark.parametrize("name, kind", [("plain", Plain), ("prox", Prox), ("dyn", Dyn), ("scaffold", Scaffold)])
def test_the_config_builds_each_objective(name, kind):
    assert instantiate(values_of("objective", name)) == kind()  # the file states the defaults


def test_dyn_takes_the_strategys_alpha():
    config = OmegaConf.create({"strategy": {"alpha": 0.3}, "objective": values_of("objective", "dyn")})
    assert instantiate(config.objective) == Dyn(0.3)
