"""Whether what a file holds has the shape that its reader counts on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedgh_app.errors import UserError


def checked(adapter: TypeAdapter[Any], found: dict[str, Any], file: Path, what: str) -> dict[str, Any]:
    """``found`` as it is.

    Args:
        adapter: of a TypedDict, which names the keys that are needed; others may be there.
        found: the content of the file.
        file: its name, for the error.
        what: what was expected, likewise.

    Raises:
        UserError: a key is missing or holds something else; the line names the first.
    """
    try:
        adapter.validate_python(found, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(" ".join(f"{file}: {place}: {first['msg']}; expected {what}".split())) from None
    return found
