"""The ClientApp: messages in, PoseClient's methods, messages out."""

from __future__ import annotations

import functools
import json

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.typing import Scalar
from torch import nn

from fedgh_app.client import PoseClient
from fedgh_app.pose.records import load_spec
from fedgh_app.site import Site, build_model, config_of, limit_threads, open_site

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Tell the server this client's name, sizes and keypoints."""
    properties = _client(context).get_properties({})
    return Message(RecordDict({"client": ConfigRecord(properties)}), reply_to=message)  # type: ignore[arg-type]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model; reply with the trained one under the received keys."""
    client = _client(context)
    received: ArrayRecord = message.content["arrays"]  # type: ignore[assignment]
    parameters, examples, metrics = client.fit(
        _parameters(client, received),
        dict(message.content["config"]),  # type: ignore[arg-type]
    )
    trained = ArrayRecord({key: Array(array) for key, array in zip(client.model.state_dict(), parameters, strict=True)})
    measured = MetricRecord({"num-examples": examples, **_numbers(metrics)})
    return Message(RecordDict({"arrays": trained, "metrics": measured}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the received model on this client's own test images."""
    client = _client(context)
    loss, examples, metrics = client.evaluate(
        _parameters(client, message.content["arrays"]),  # type: ignore[arg-type]
        dict(message.content["config"]),  # type: ignore[arg-type]
    )
    measured = MetricRecord({"num-examples": examples, "loss": loss, **_numbers(metrics)})
    return Message(RecordDict({"metrics": measured}), reply_to=message)


def _parameters(client: PoseClient, received: ArrayRecord) -> list[np.ndarray]:
    """The received arrays in the order of the client's own state dict, whatever order they came in."""
    return [received[key].numpy() for key in client.model.state_dict()]


def _numbers(metrics: dict[str, Scalar]) -> dict[str, int | float]:
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}


def _client(context: Context) -> PoseClient:
    overrides = str(context.run_config["overrides"])
    config = config_of(overrides)
    limit_threads(config.runtime.client_cpus)
    site = _site(overrides, json.dumps(dict(context.node_config), sort_keys=True))
    return PoseClient(config, site, _model(overrides))


# One process serves many messages, and in simulation many clients: what does not change is built once.
@functools.lru_cache(maxsize=256)
def _site(overrides: str, node_config: str) -> Site:
    return open_site(config_of(overrides), json.loads(node_config))


@functools.lru_cache(maxsize=1)
def _model(overrides: str) -> nn.Module:
    config = config_of(overrides)
    return build_model(config, load_spec(config.dataset.spec))
