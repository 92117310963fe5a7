"""The single values of a run, with their types and ranges."""

from __future__ import annotations

from typing import Annotated, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, strict=True)]
Some = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0)]


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Evaluate(_Values):
    """When the global model is tested, and by whom; what is the task's own it reads itself."""

    central_every: Count
    clients_every: Count
    clients_fraction: Annotated[float, Field(gt=0, le=1)]


class Runtime(_Values):
    """Where clients run, and what they may take. What a runtime does not say is as here."""

    name: Literal["simulation", "inprocess", "deployment", "centralised", "local"]
    client_cpus: Some | None
    client_gpus: Annotated[float, Field(ge=0)]
    server_cpus: Some | None = None
    num_supernodes: Some = 4
    node_timeout: Positive | None = None
    examples_per_second: Positive = 100.0
    speeds: dict[str, float] = {}
    superlink: str = ""
    packed: bool = False


class Settings(_Values):
    """What stands at the top of ``conf/config.yaml``, and where the run happens."""

    seed: Count
    rounds: Count
    num_clients: Some | None
    local_epochs: Some
    batch_size: Annotated[int, Field(ge=1, le=8192, strict=True)]
    run_dir: str | None
    resume: str | None
    init: str | None
    round_timeout: Positive
    min_clients: Some
    outlier_factor: Annotated[float, Field(gt=1)]
    keep_checkpoints: Count
    evaluate: Evaluate
    runtime: Runtime

    @classmethod
    def of(cls, config: DictConfig) -> Settings:
        """Those of a composed config; pydantic's ValidationError where a value is none."""
        return cls.model_validate(OmegaConf.to_container(config))
