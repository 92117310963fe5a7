"""Files of JSON in a run directory: the name of each, and one type by which it is written and read.

They may be damaged, of another version, or somebody else's: what a reader counts on is checked, once, where it is read.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedgh_app.errors import UserError
from fedgh_app.runs import storage

LAUNCH = "launch.json"
FAILURE = "failure.json"
TRACKING = "tracking.json"
PRIVACY = "privacy.json"

# JSON has no nan: what was not measured is null in a file and None here.
Measurable = BeforeValidator(lambda value: None if isinstance(value, float) and math.isnan(value) else value)
# A mean of ones may be a little above 1.
Share = Annotated[Annotated[float, Field(ge=0, le=1 + 1e-9)] | None, Measurable]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Epsilon = Annotated[Annotated[float, Field(ge=0)] | None, Measurable]


class Record(BaseModel):
    """What a file, or a part of one, holds. Keys that are not known are passed over: another version may write more."""

    model_config = ConfigDict(extra="ignore")
    EXPECTED: ClassVar[str] = "what fedgh run wrote"  # what it is, for the error where something else is there

    @classmethod
    def checked(cls, content: Mapping[str, object], file: Path) -> Self:
        """The content of ``file``; UserError, which names the first key that is missing or holds something else."""
        try:
            return cls.model_validate(content, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"])) or "as a whole"
            raise UserError(" ".join(f"{file}: {place}: {first['msg']}; expected {cls.EXPECTED}".split())) from None


class RecordFile(Record):
    """A record that is a file of its own."""

    NAME: ClassVar[str]  # of the file

    @classmethod
    def read(cls, directory: Path) -> Self:
        """From a run directory; UserError where the file is damaged, FileNotFoundError where there is none."""
        return cls.checked(storage.read_json(directory / cls.NAME), directory / cls.NAME)

    def write(self, directory: Path) -> None:
        """Into a run directory, atomically."""
        storage.write_json(directory / self.NAME, self)


class Launch(RecordFile):
    """With what a run was started."""

    NAME = LAUNCH
    overrides: list[str]  # those of the run, without its directory
    mark: str  # what all its processes carry
    directory: str  # where it was started: a copy knows by it that the original's processes are not its own


class Failure(RecordFile):
    """Why a run failed."""

    NAME = FAILURE
    error: str  # in one line
    kind: str  # the exception's name
    user: bool  # whether the user's input was at fault


class Tracking(RecordFile):
    """Where W&B's copy of a run is."""

    NAME = TRACKING
    mode: Literal["online", "offline"]
    url: str | None  # None where it lies on disk alone
    folder: str  # where it does
    sync: str | None  # the command that uploads it; None where nothing is missing


class PrivacyAccount(RecordFile):
    """What differential privacy guarantees by now, and how often each client was asked for an update."""

    NAME = PRIVACY
    EXPECTED = "what the run has spent of its clients' privacy"
    epsilon: Epsilon = None  # of the client that was asked most often; None where it is infinite
    epsilon_round: Epsilon = None  # of one update alone
    delta: float = 0.0
    releases: int = 0  # updates of that client
    asked: dict[str, Annotated[int, Field(ge=0)]]
