"""The ClientApp: messages in, PoseClient's methods, messages out."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.typing import Scalar
from omegaconf import DictConfig
from torch import Tensor, nn

from fedgh_app.client.boundary import Own, bounded, discreet
from fedgh_app.client.client import PoseClient
from fedgh_app.client.local_state import LocalState, file_of
from fedgh_app.client.privacy import check_demand
from fedgh_app.client.teacher import guide_of
from fedgh_app.client.termination import terminable
from fedgh_app.data.site import Site, build_model, config_of, device_of, limit_threads, open_site
from fedgh_app.errors import UserError
from fedgh_app.grids.packing import packing
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.models.hhd import Guide

CONTROL = "control"  # SCAFFOLD's control variate, beside the model

# The border comes first: whatever is raised inside of it passes there.
app = ClientApp(mods=[discreet, terminable, packing])


@app.query()
def query(message: Message, context: Context) -> Message:
    """Tell the server this client's name, sizes and keypoints; where anything is missing here, fail now."""
    _, site, *_ = _at_hand(context)
    return Message(RecordDict({"client": ConfigRecord({**site.properties()})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model; reply with the trained one under the received keys."""
    client = _client(context, message)
    check_demand(client.config, context.node_config)
    parameters, examples, metrics = client.fit(_parameters(client, message), _config(message))
    if client.keeps_state:
        client.local.store(_file(client, message))
    trained = ArrayRecord({key: Array(array) for key, array in zip(client.shared_keys, parameters, strict=True)})
    measured = MetricRecord({"num-examples": examples, **_numbers(metrics)})
    return Message(RecordDict({"arrays": trained, "metrics": measured}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the received model on this client's own images."""
    client = _client(context, message)
    loss, examples, metrics = client.evaluate(_parameters(client, message), _config(message))
    measured = MetricRecord({"num-examples": examples, "loss": loss, **_numbers(metrics)})
    return Message(RecordDict({"metrics": measured}), reply_to=message)


def _config(message: Message) -> dict[str, Scalar]:
    return dict(message.content.config_records["config"])  # type: ignore[arg-type]  # Flower's Scalar leaves out lists


def _parameters(client: PoseClient, message: Message) -> list[np.ndarray]:
    """The received arrays in the order of the client's own state dict, whatever order they came in."""
    received = message.content.array_records["arrays"]
    if missing := [key for key in client.shared_keys if key not in received]:
        raise UserError(f"array {missing[0]} was not sent; expected the {len(client.shared_keys)} shared ones")
    return [received[key].numpy() for key in client.shared_keys]


def _numbers(metrics: dict[str, Scalar]) -> dict[str, int | float]:
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}


def _at_hand(context: Context) -> tuple[DictConfig, Site, nn.Module, dict[str, Tensor], Guide | None]:
    """What this process has for the node: config, site, model and its initial state, teacher."""
    overrides = str(context.run_config["overrides"])
    own = Own.of(context.node_config)
    config = _config_at(overrides, own)
    limit_threads(config.runtime.client_cpus)
    site = _site(overrides, json.dumps(dict(context.node_config), sort_keys=True))
    model, initial = _model(overrides, own, site.cache.spec.name)
    return config, site, model, initial, _guide(overrides, own, site.cache.spec.name)


def _client(context: Context, message: Message) -> PoseClient:
    """The client of this node as it stands when it gets ``message``."""
    config, site, model, initial, guide = _at_hand(context)
    client = PoseClient(config, site, model, initial, guide=guide)
    if client.keeps_state:
        client.local = LocalState.open(_file(client, message))
        said = _config(message)
        client.local.acknowledge(int(said["acknowledged"]), int(said["settled"]), int(said["session"]))
    if CONTROL in message.content:
        control = message.content.array_records[CONTROL]
        client.control = {key: torch.as_tensor(array.numpy()).clone() for key, array in control.items()}
    return client


def _file(client: PoseClient, message: Message) -> Path:
    return file_of(client.config, str(_config(message)["run"]), client.site.name)


# One process serves many messages, and in simulation many clients: what does not change is built once.
@functools.lru_cache(maxsize=4)
def _config_at(overrides: str, own: Own) -> DictConfig:
    return bounded(config_of(overrides), own)


@functools.lru_cache(maxsize=256)
def _site(overrides: str, node_config: str) -> Site:
    node = json.loads(node_config)
    return open_site(_config_at(overrides, Own.of(node)), node)


@functools.lru_cache(maxsize=2)
def _model(overrides: str, own: Own, dataset: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model for the data set's keypoints, and a copy of its state before training."""
    model = build_model(_config_at(overrides, own), load_spec(dataset))
    return model, {key: tensor.clone() for key, tensor in model.state_dict().items()}


@functools.lru_cache(maxsize=2)
def _guide(overrides: str, own: Own, dataset: str) -> Guide | None:
    """The teacher; None without one."""
    config = _config_at(overrides, own)
    return guide_of(config, load_spec(dataset), device_of(config))
