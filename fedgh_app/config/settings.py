"""The single values of a run, with their types and ranges, and how one that is wrong is told."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants no other before Python 3.12

from fedgh_app.config.choices import shown
from fedgh_app.errors import UserError
from fedgh_app.resources import Values

Count = Annotated[int, Field(ge=0, strict=True)]
Some = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0)]
Finite = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Far beyond what anybody needs; a slip or a hostile server would take all memory of every client.
Images = Annotated[int, Field(ge=1, le=10**6, strict=True)]


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Evaluate(_Values):
    """When the global model is tested, and by whom; what is the task's own it reads itself."""

    central_every: Count
    clients_every: Count
    clients_fraction: Annotated[
        float, Field(gt=0, le=1, description="above 0 and at most 1; evaluate.clients_every=0 asks nobody")
    ]


class Runtime(_Values):
    """Where clients run, and what they may take. What a runtime does not say is as here."""

    name: Literal["simulation", "inprocess", "deployment", "centralised", "local"]
    client_cpus: Some | None
    client_gpus: Annotated[float, Field(ge=0)]
    server_cpus: Some | None = None
    num_supernodes: Some = 4
    node_timeout: Positive | None = None
    examples_per_second: Positive = 100.0
    speeds: dict[Annotated[str, BeforeValidator(str)], float] = {}
    superlink: str = ""
    packed: bool = False


class Privacy(_Values):
    """Where updates are clipped and noise is added, and how much."""

    name: Literal["none", "central", "local"]
    clipping_norm: Finite = 1.0
    noise_multiplier: Finite = 1.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5


class Tracking(_Values):
    """Where a run is tracked beside its directory."""

    name: str
    project: str = "fedgh"
    entity: str | None = None
    group: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None


class _Dataset(_Values):
    on_bad: Literal["raise", "skip"]


class _Images(_Values):
    images: Images = 1


class _Topology(_Values):
    edge_rounds: Some = 1


class Settings(_Values):
    """What stands at the top of ``conf/config.yaml``, and the groups that are no objects."""

    seed: Count
    rounds: Count
    num_clients: Some | None
    local_epochs: Some
    batch_size: Annotated[int, Field(ge=1, le=8192, strict=True)]
    run_dir: str | None
    resume: str | None = Field(description="a run directory")
    init: str | None = Field(description="a run directory or a model.safetensors")
    round_timeout: Positive = Field(description="a positive number of seconds")
    min_clients: Some
    outlier_factor: Annotated[float, Field(gt=1, description="a number above 1, or inf")]
    keep_checkpoints: Count
    evaluate: Evaluate
    runtime: Runtime
    privacy: Privacy
    tracking: Tracking
    dataset: _Dataset
    distillation: _Images
    clustering: _Images
    topology: _Topology

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """Those of a composed config; UserError where a value is none."""
        return held_to(cls, config)


def held_to(kind: Any, config: DictConfig) -> Any:
    """A config as a value of a type that pydantic knows; UserError, told as for a command line, where it is none."""
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(OmegaConf.to_container(config))
    except ValidationError as error:
        # A value of the top may stand in several groups by reference; it is told as what was set.
        fault = min(error.errors(), key=lambda fault: len(fault["loc"]))
    whole = adapter.json_schema()
    node: Values = whole
    for key in fault["loc"]:
        node = _at(node, whole)
        node = node.get("properties", {}).get(key) or node["additionalProperties"]
    value, other = fault["input"], ""
    if fault["type"].endswith("_type") and value is not None:
        other = f", not {NAMES[TypeAdapter(type(value)).json_schema()['type']]}"
    raise UserError(f"{'.'.join(map(str, fault['loc']))}={shown(value)}: expected {_expected(node, whole)}{other}")


def types_of(defaults: DictConfig) -> Any:
    """The type that ``defaults`` are of, for `held_to`. A null stands for anything, and no key must be there."""
    types = {str(key): _type(node) for key, node in defaults.items()}
    return TypedDict("Defaults", types, total=False)  # type: ignore[operator]


def _type(default: object) -> Any:
    if isinstance(default, DictConfig):
        return types_of(default)
    kind = list if isinstance(default, ListConfig) else type(default)
    return Any if default is None else Annotated[kind, Field(strict=True)]


def _at(schema: Mapping[str, Any], whole: Values) -> Mapping[str, Any]:
    return {**whole["$defs"][schema["$ref"].rpartition("/")[2]], **schema} if "$ref" in schema else schema


NAMES = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a word",
    "array": "a list",
    "object": "a group of values",
}
BOUNDS = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def _expected(schema: Mapping[str, Any], whole: Values) -> str:
    schema = _at(schema, whole)
    if "anyOf" in schema and "description" not in schema:
        return " or ".join(_expected(one, whole) for one in schema["anyOf"])
    if "enum" in schema:
        return f"{', '.join(schema['enum'][:-1])} or {schema['enum'][-1]}"
    bounds = " and ".join(f"{word} {schema[bound]}" for bound, word in BOUNDS.items() if bound in schema)
    name = NAMES.get(schema.get("type", ""), "null")
    return str(schema.get("description") or " ".join(filter(None, [name, bounds])))
