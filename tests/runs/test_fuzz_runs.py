"""Anything in the files of a run, in overrides and in messages: the project's own error in one line, or an answer."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recording
import torch
import yaml
from conftest import TINY, ToyPose
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from hypothesis import strategies as st
from mutation import ODD, altered, counted, damaged, fuzz, one_line
from omegaconf import DictConfig
from rich.console import Console
from safetensors.torch import save
from sweep_folder import run
from written_run import write_run

from fedgh_app.assembly.server import Assembly
from fedgh_app.client.local_state import LocalState
from fedgh_app.client_app import app
from fedgh_app.config.choices import groups
from fedgh_app.config.compose import compose_config, join_overrides, split_overrides
from fedgh_app.data import partition
from fedgh_app.errors import RunFailed, UserError
from fedgh_app.grids import packing
from fedgh_app.grids.inprocess import InProcessGrid
from fedgh_app.reports import figures as report_figures
from fedgh_app.reports.page import write
from fedgh_app.reports.statistics import settings_of
from fedgh_app.runs import storage
from fedgh_app.runs.checkpoints import newest
from fedgh_app.runs.directory import CONFIG
from fedgh_app.runs.history import HISTORY, read_history
from fedgh_app.runs.opening import load_run
from fedgh_app.runs.records import LAUNCH, TRACKING
from fedgh_app.runs.result import RESULT
from fedgh_app.runs.resumption import resumed
from fedgh_app.runs.sweep import Sweep
from fedgh_app.runtimes.sweep import print_status
from fedgh_app.server.persistence import take_up


def told(read: Callable[[], Any], *names: str) -> None:
    """Read; the project's own error is an answer like another, if it is one line that names one of ``names``."""
    try:
        read()
    except (UserError, RunFailed) as error:
        one_line(error, *names)


def dumped(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def jsons(valid: Any) -> st.SearchStrategy[bytes]:
    return st.one_of(altered(valid).map(dumped), altered(valid).map(dumped), damaged(dumped(valid)))


def safetensors(tree: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    return save({key: torch.as_tensor(value) for key, value in tree.items()}, metadata=metadata)


def plain_text(tree: dict[Any, Any]) -> dict[str, str]:
    """As metadata can hold it."""
    return {ascii(key).strip("'"): ascii(value).strip("'") for key, value in tree.items()}


# Files of a run --------------------------------------------------------------------------------------------


@counted
def test_models(tmp_path: Path, count: int) -> None:
    file = tmp_path / "model.safetensors"
    valid = safetensors({"a.weight": np.ones((2, 3), np.float32), "b": np.arange(4)}, {"dataset": "arm", "rounds": "3"})

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: storage.load_model(file), str(file))

    fuzz(check, damaged(valid), count)


@counted
def test_run_directories(tmp_path: Path, count: int) -> None:
    light = ["model=shufflenet_v2", "model.backbone=shufflenet_v2_x0_5"]
    write_run(tmp_path / "run", [*TINY, *light])
    files = [tmp_path / "run" / name for name in ("config.yaml", "model.safetensors")]
    config, model = (file.read_bytes() for file in files)

    def check(contents: tuple[bytes, bytes]) -> None:
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        told(lambda: load_run(tmp_path / "run"))

    trees = altered(yaml.safe_load(config)).map(lambda tree: yaml.safe_dump(tree).encode())
    described = storage.load_model(files[1])[1]
    names = altered(described).filter(lambda tree: isinstance(tree, dict))
    metadata = names.map(lambda tree: safetensors({"a": [1.0]}, plain_text(tree)))
    whole = st.tuples(st.one_of(trees, damaged(config)), st.just(model))
    fuzz(check, st.one_of(whole, st.tuples(st.just(config), st.one_of(damaged(model), metadata))), count // 2)


@counted
def test_launch_files(tmp_path: Path, count: int) -> None:
    valid = {"overrides": ["strategy=fedaw", "seed=3"], "mark": "0123456789abcdef", "directory": str(tmp_path)}

    def check(content: bytes) -> None:
        (tmp_path / LAUNCH).write_bytes(content)
        told(lambda: resumed(tmp_path, ["rounds=9"]), str(tmp_path))

    fuzz(check, jsons(valid), count)


@counted
def test_sweeps(tmp_path: Path, count: int) -> None:
    job = {"number": 0, "overrides": ["seed=1"], "status": "completed", "reason": None, "seconds": 1.0, "attempts": 1}
    environment = {"python": "3", "system": "x", "cores": 1, "packages": {"torch": "2"}, "commit": None}
    valid = {"jobs": [job, job | {"number": 1}], "overrides": ["seed=1,2"], "started": 1.0, "environment": environment}
    valid |= {"cwd": str(tmp_path), "mark": "0" * 16, "directory": str(tmp_path)}
    (tmp_path / "sweep.json").write_bytes(dumped(valid))
    assert len(Sweep.read(tmp_path).jobs) == 2

    def check(content: bytes) -> None:
        (tmp_path / "sweep.json").write_bytes(content)
        told(lambda: print_status(Sweep.read(tmp_path), Console(file=StringIO())), str(tmp_path))

    fuzz(check, jsons(valid), count)


REPORTED = (CONFIG, RESULT, HISTORY, TRACKING, LAUNCH)


@counted
def test_reports(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that others send: whatever is in their files, there is a page or one line."""
    monkeypatch.setattr(report_figures, "svg", lambda figure: "")  # takes most of the time, and reads nothing
    for name, pck in (("a", 0.5), ("b", 0.6)):
        run(tmp_path / name, compose_config([f"strategy={'fedavg' if name == 'a' else 'fedgh'}", "rounds=2"]), pck, 0)
        tracked = {"mode": "online", "url": "https://example.org/run", "folder": "w", "sync": None}
        storage.write_json(tmp_path / name / "tracking.json", tracked)
        started = {"overrides": ["rounds=2"], "mark": "0" * 16, "directory": str(tmp_path / name)}
        storage.write_json(tmp_path / name / LAUNCH, started)
    valid = {name: (tmp_path / "b" / name).read_bytes() for name in REPORTED}
    runs = [tmp_path / "a", tmp_path / "b"]
    write(settings_of(runs), runs, tmp_path / "out", "FedAvg")

    def check(changed: tuple[str, bytes]) -> None:
        for name, content in (valid | dict([changed])).items():
            (tmp_path / "b" / name).write_bytes(content)
        told(lambda: write(settings_of(runs), runs, tmp_path / "out", "FedAvg"), str(tmp_path / "b"), "--baseline")

    configs = altered(yaml.safe_load(valid["config.yaml"])).map(lambda tree: yaml.safe_dump(tree).encode())
    lines = [json.loads(line) for line in valid["history.jsonl"].splitlines()]
    histories = altered(lines).map(
        lambda tree: b"".join(dumped(line) + b"\n" for line in (tree if isinstance(tree, list) else [tree]))
    )
    others = {name: jsons(json.loads(valid[name])) for name in REPORTED if name.endswith(".json")}
    kinds = {"config.yaml": st.one_of(configs, damaged(valid["config.yaml"])), **others}
    kinds |= {"history.jsonl": st.one_of(histories, damaged(valid["history.jsonl"]))}
    fuzz(check, st.one_of(*(st.tuples(st.just(name), contents) for name, contents in kinds.items())), count // 4)


@counted
def test_histories(tmp_path: Path, count: int) -> None:
    file = tmp_path / "history.jsonl"
    valid = "".join(storage.line({"round": n, "train": {"loss": 0.5}}) for n in range(3)).encode()

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: read_history(tmp_path), str(file))

    fuzz(check, st.one_of(damaged(valid), jsons({"round": 1}).map(lambda line: valid + line + b"\n")), count)


@counted
def test_states_of_a_server(tmp_path: Path, count: int) -> None:
    file = tmp_path / "round-0001.json"
    state = {"round": 1, "h": {"w": torch.ones(3)}, "numbered": {0: {"step": torch.tensor(3.0)}}, "list": [1, None]}
    storage.save_state(file, state)
    beside = tmp_path / "round-0001.state.safetensors"
    outline, tensors = file.read_bytes(), beside.read_bytes()

    def check(contents: tuple[bytes, bytes]) -> None:
        file.write_bytes(contents[0])
        beside.write_bytes(contents[1])
        told(lambda: storage.load_state(file), str(tmp_path))
        told(lambda: newest(tmp_path, 9), str(tmp_path))

    whole = st.tuples(jsons(json.loads(outline)), st.just(tensors))
    fuzz(check, st.one_of(whole, st.tuples(st.just(outline), damaged(tensors))), count)


@counted
def test_what_a_run_takes_up(toy: list[str], tmp_path: Path, count: int) -> None:
    """Every part of a server that has a state, and lines of the history."""
    parts = ["strategy=fedaw", "selection=oort", "sharing=fedbn"]
    run, _ = recording.run([*toy, "rounds=2", *parts], tmp_path / "run")
    run.settings = run.settings.model_copy(update={"rounds": 9})
    run.values = run.values | {"rounds": 9}
    files = [run.directory / "checkpoints" / "round-0002.json", run.directory / "history.jsonl"]
    state, history = (file.read_bytes() for file in files)
    assert take_up(run) == 2

    def check(contents: tuple[bytes, bytes]) -> None:
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        told(lambda: take_up(run), str(run.directory))

    last = json.loads(history.splitlines()[-1])
    states = st.tuples(jsons(json.loads(state)), st.just(history))
    histories = st.tuples(st.just(state), jsons(last).map(lambda line: history + line + b"\n"))
    fuzz(check, st.one_of(states, states, histories), count)


@counted
def test_states_of_a_client(tmp_path: Path, count: int) -> None:
    file = tmp_path / "a.safetensors"
    state = LocalState({3: {"model:w": torch.ones(2)}}, accepted_draw=3, draw=3)
    state.store(file)
    valid = file.read_bytes()

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: LocalState.open(file), str(file))

    about = {"accepted_draw": "3", "settled_draw": "0", "draw": "3", "session": "0"}
    odd = (
        altered(about)
        .filter(lambda tree: isinstance(tree, dict))
        .map(lambda tree: safetensors({"3/model:w": [1.0]}, plain_text(tree)))
    )
    fuzz(check, st.one_of(damaged(valid), odd), count)


@counted
def test_partitions(tmp_path: Path, count: int) -> None:
    file = tmp_path / "arm.json"
    valid = {"labels": ["a", "b"], "train": [[0, 1], [2]], "test": [[3], [4]]}

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: partition.load.__wrapped__(file), str(file))

    fuzz(check, jsons(valid), count)


# Overrides -------------------------------------------------------------------------------------------------


def leaves(node: Any, path: str = "") -> Iterator[str]:
    """Every key of a config that holds a single value or a list."""
    if isinstance(node, DictConfig):
        for key in node:
            yield from leaves(node[key], f"{path}.{key}".strip("."))
    else:
        yield path


def as_override(value: Any) -> str:
    """A value in Hydra's grammar, more or less."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return {"None": "null"}.get(str(value), str(value))
    if isinstance(value, str):
        return f"'{value}'"
    return str(value).replace("'", "").replace("None", "null")


@counted
def test_the_one_text_of_all_overrides(count: int) -> None:
    fuzz(lambda text: told(lambda: split_overrides(text), "overrides="), st.text(), count)


@counted
def test_overrides(count: int, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever still composes is built, but for the network itself."""
    monkeypatch.setattr(Assembly, "build_model", lambda *_: ToyPose(3))
    keys = sorted(set(leaves(compose_config([]))) - {"init", "resume"})
    choices = [f"{group}={choice}" for group, found in groups().items() for choice in found]

    def check(overrides: list[str]) -> None:
        told(lambda: Assembly(compose_config([*TINY, *overrides])).check())

    odd = st.sampled_from(ODD).map(as_override)
    prefix = st.sampled_from(["", "", "+", "++", "~"])
    single = st.builds("{}{}={}".format, prefix, st.sampled_from(keys), st.one_of(odd, st.integers().map(str)))
    below = st.builds("+{}.{}={}".format, st.sampled_from(keys), st.sampled_from(["x", "_target_", "0", "${y}"]), odd)
    text = damaged(*(item.encode() for item in [*choices, *TINY])).map(lambda data: data.decode("utf-8", "replace"))
    several = st.lists(st.one_of(single, single, below, text), min_size=1, max_size=3)
    fuzz(check, several, count)


# Messages --------------------------------------------------------------------------------------------------


def records(draw: st.DrawFn, arrays: dict[str, np.ndarray], config: dict[str, Any]) -> RecordDict:
    """Records as a client expects them, with something wrong in them."""
    sent: dict[str, Array] = {}
    for key, value in arrays.items():
        array = Array(np.asarray(value))
        kind = draw(st.integers(0, 12))
        if kind == 0:
            continue
        if kind == 1:
            array.data = draw(damaged(array.data))
        elif kind == 2:
            array.dtype = draw(st.sampled_from(["object", "O", "float64", "int3", ""]))
        elif kind == 3:
            array.shape = draw(st.sampled_from([(), (-1,), (2**40,), (0,)]))
        elif kind == 4:
            array.stype = draw(st.sampled_from(["pickle", "", "torch"]))
        elif kind == 5:
            other = draw(st.sampled_from(["f8", "c16", "i1", "U3", "M8[s]", "V4"]))
            array = Array(np.zeros(value.shape, dtype=other))
        elif kind == 6:
            array = Array(np.full(value.shape, draw(st.sampled_from([np.nan, np.inf, 3e38])), dtype=np.float32))
        sent[key] = array
    numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans())
    values = st.one_of(numbers, st.text(max_size=40), st.binary(max_size=8), st.lists(st.text(max_size=9), max_size=3))
    said = {key: draw(values) if draw(st.integers(0, 5)) == 0 else value for key, value in config.items()}
    said = {key: value for key, value in said.items() if draw(st.integers(0, 15))}
    content = RecordDict()
    content[draw(st.sampled_from(["arrays"] * 9 + ["x"]))] = ArrayRecord(sent)
    content[draw(st.sampled_from(["config"] * 9 + ["x"]))] = ConfigRecord(said)
    if draw(st.integers(0, 9)) == 0:
        content["control"] = ArrayRecord(sent)
    return content


ASKED = {"server-round": 1, "draw": 1, "acknowledged": 0, "settled": 0, "session": 0, "report": ["loss-rms"]}
ASKED |= {"run": "0" * 32, "split": "test"}


@counted
@pytest.mark.parametrize("beside", [[], ["sharing=fedbn", "objective=prox"]], ids=["shared", "kept"])
def test_messages_to_a_site(toy: list[str], home: Path, count: int, beside: list[str]) -> None:
    """The site answers, if only with an error, and of its files it tells nothing."""
    root = home / "data" / "arm"
    overrides = join_overrides([*toy, "partition=site", "batch_size=64", *beside])
    state = {key: value.numpy() for key, value in ToyPose(3).state_dict().items()}
    kinds = [MessageType.TRAIN] * 4 + [MessageType.EVALUATE] * 2 + [MessageType.QUERY]

    @st.composite
    def messages(draw: st.DrawFn) -> tuple[str, RecordDict]:
        return draw(st.sampled_from(kinds)), records(draw, state, ASKED)

    def check(sent: tuple[str, RecordDict]) -> None:
        grid = InProcessGrid(app, [{"name": "clinic", "data-root": str(root)}], {"overrides": overrides})
        (reply,) = grid.send_and_receive([Message(sent[1], 1, sent[0])])
        if reply.has_error():
            assert reply.error.reason.startswith(("UserError: ", "RunFailed: ")), reply.error.reason
            assert "\n" not in reply.error.reason
            assert str(home) not in reply.error.reason

    fuzz(check, messages(), count)


@counted
def test_layouts_of_packed_arrays(count: int) -> None:
    """A site's layout must not end the server's run, nor the server's a site's process."""
    state = {key: Array(value.numpy()) for key, value in ToyPose(3).state_dict().items()}
    valid = packing.pack(RecordDict({"arrays": ArrayRecord(state)}))
    layout = json.loads(str(valid.config_records[packing.LAYOUT + "arrays"]["arrays"]))

    def check(text: str) -> None:
        content = RecordDict(dict(valid))
        content[packing.LAYOUT + "arrays"] = ConfigRecord({"arrays": text})
        with contextlib.suppress(ValueError):
            packing.unpack(content)

    deep = st.just("[" * 100_000)
    fuzz(check, st.one_of(jsons(layout).map(lambda data: data.decode("utf-8", "replace")), deep), count)
