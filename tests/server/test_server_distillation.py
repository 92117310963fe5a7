"""What the server does with images of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ToyPose
from flwr.app import ArrayRecord
from recording import run

from fedgh_app.assembly.server import Assembly
from fedgh_app.config.compose import compose_config
from fedgh_app.errors import UserError
from fedgh_app.runs import storage
from fedgh_app.runs.history import Round
from fedgh_app.server.federation import Update, tensors
from fedgh_app.server.parts.distillation import ServerDistillation
from fedgh_app.server.public_images import PublicImages

PUBLIC = ["distillation=server", "distillation.images=8", "distillation.every=2", "rounds=4"]


def part(overrides: list[str]) -> ServerDistillation:
    config = compose_config([*overrides, "distillation=server", "distillation.images=8"])
    made = Assembly(config).federation(Path()).parts["distillation"]
    assert isinstance(made, ServerDistillation)
    return made


def images(overrides: list[str]) -> PublicImages:
    drawn = part(overrides).images
    drawn.open()
    return drawn


def test_the_images_are_a_draw_that_the_seed_decides(toy: list[str]) -> None:
    first, again, other = images(toy), images(toy), images([*toy, "seed=1"])
    assert len(first.indices) == 8
    assert (first.indices == again.indices).all()
    assert (first.indices != other.indices).any()
    one, two = (torch.cat([batch.images for batch in first.batches(first.learner())]) for _ in range(2))
    assert torch.equal(one, two)


def test_an_embedding_is_a_function_of_what_the_client_sent(toy: list[str]) -> None:
    torch.manual_seed(0)
    one, two = ToyPose(3).state_dict(), ToyPose(3).state_dict()
    embedded = images(toy).embeddings({"a": one, "b": two, "c": one})
    assert embedded["a"].shape == (8 * 4,)  # images by channels of the backbone
    assert torch.equal(embedded["a"], embedded["c"])
    assert not torch.equal(embedded["a"], embedded["b"])


def test_images_that_are_not_there_are_named(toy: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"distillation\.public\.root=.*none: no such directory; expected data set arm"):
        images([*toy, f"distillation.public.root={tmp_path}/none"])


@pytest.mark.parametrize("output", ["outputs", "features"])
def test_it_distils_in_every_nth_round_and_says_so(output: str, toy: list[str], tmp_path: Path) -> None:
    done, _ = run([*toy, *PUBLIC, f"distillation.output={output}"], tmp_path / "with")
    run([*toy, "rounds=4"], tmp_path / "without")
    found = [line["distillation"] for line in storage.read_lines(tmp_path / "with" / "history.jsonl")]
    assert [bool(entry) for entry in found] == [False, False, True, False, True]
    assert (found[2]["global"]["images"], found[2]["global"]["teachers"]) == (8, 4)
    assert found[2]["global"]["loss"] > 0
    same, other = storage.load_model(tmp_path / "with")[0], storage.load_model(tmp_path / "without")[0]
    assert any(not torch.equal(same[key], other[key]) for key in same)
    again, _ = run([*toy, *PUBLIC, f"distillation.output={output}"], tmp_path / "again")
    assert {k: a.data for k, a in done.arrays.items()} == {k: a.data for k, a in again.arrays.items()}


def test_the_clients_agreement_is_a_fixed_point(toy: list[str], tmp_path: Path) -> None:
    """Where the only teacher is the model itself, there is nothing to learn: plain SGD leaves it where it is."""
    overrides = [*toy, "optimizer=sgd", "optimizer.momentum=0", "rounds=1"]
    done, grid = run(overrides, tmp_path / "run")
    reply = next(message for message in grid.received if "arrays" in message.content)
    arrays: ArrayRecord = reply.content.array_records["arrays"]
    current = Round(round=1)
    teacher = part([*overrides, "distillation.every=1"])
    teacher.join(done)
    after = teacher.after_aggregation(current, arrays, arrays, [Update("0", reply, arrays)], "global")
    for key, tensor in tensors(after).items():
        assert torch.allclose(tensor, tensors(arrays)[key], atol=1e-6), key
    assert current.distillation["global"]["loss"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("every=0", "distillation.every=0: expected a whole number of at least 1"),
        ("output=logits", "distillation.output=logits: expected outputs or features"),
        ("learning_rate_factor=0", "distillation.learning_rate_factor=0: expected a number above 0"),
    ],
)
def test_a_bad_value_is_named(option: str, words: str, toy: list[str]) -> None:
    with pytest.raises(UserError) as error:
        part([*toy, f"distillation.{option}"])
    assert str(error.value) == words
