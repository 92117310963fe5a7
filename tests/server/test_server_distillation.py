"""What the server does with images of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ToyPose
from fedgh_app.server.distillation import PublicImages, ServerDistillation
from flwr.app import ArrayRecord
from recording import run

from fedgh_app.config.compose import compose_config
from fedgh_app.errors import UserError
from fedgh_app.runs import storage
from fedgh_app.server.federation import Round, Update, tensors

PUBLIC = ["distillation=server", "distillation.images=8", "distillation.every=2", "rounds=4"]


def images(overrides: list[str], count: int = 8) -> PublicImages:
    config = compose_config([*overrides, "distillation=server"])
    return PublicImages(config, config.distillation.public, count, "distillation.public")


def test_the_images_are_a_draw_that_the_seed_decides(toy: list[str]) -> None:
    first, again, other = images(toy), images(toy), images([*toy, "seed=1"])
    assert len(first.indices) == 8
    assert (first.indices == again.indices).all()
    assert (first.indices != other.indices).any()
    one, two = (torch.cat([batch.images for batch in first.batches()]) for _ in range(2))
    assert torch.equal(one, two)


def test_an_embedding_is_a_function_of_what_the_client_sent(toy: list[str]) -> None:
    config, found = compose_config(toy), images(toy)
    torch.manual_seed(0)
    one, two = ToyPose(3), ToyPose(3)
    embedded = found.embed(config, ToyPose(3), one.state_dict())
    assert embedded.shape == (8 * 4,)  # images by channels of the backbone
    assert torch.equal(embedded, found.embed(config, ToyPose(3), one.state_dict()))
    assert not torch.equal(embedded, found.embed(config, ToyPose(3), two.state_dict()))


def test_images_that_are_not_there_are_named(toy: list[str], tmp_path: Path) -> None:
    config = compose_config([*toy, "distillation=server", f"distillation.public.root={tmp_path}/none"])
    with pytest.raises(UserError, match=r"distillation\.public\.root=.*none: no such directory; expected data set arm"):
        PublicImages(config, config.distillation.public, 8, "distillation.public")


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
    this = Round(round=1)
    after = ServerDistillation(images(toy), every=1).distil(done, this, arrays, [Update("0", reply, arrays)], "global")
    for key, tensor in tensors(after).items():
        assert torch.allclose(tensor, tensors(arrays)[key], atol=1e-6), key
    assert this.distillation["global"]["loss"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "distillation.every=0: expected a whole number of at least 1"),
        ({"output": "logits"}, "distillation.output=logits: expected outputs or features"),
        ({"learning_rate_factor": 0}, "distillation.learning_rate_factor=0: expected a number above 0"),
    ],
)
def test_a_bad_value_is_named(options: dict[str, object], words: str, toy: list[str]) -> None:
    with pytest.raises(UserError) as error:
        ServerDistillation(images(toy), **options)
    assert str(error.value) == words
