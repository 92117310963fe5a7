"""What people call the clients, and the order in which they count them."""

import re
from collections.abc import Collection, Mapping


def client_of(label: str, clients: Collection[str]) -> str:
    """The client that a row of the diagnostics is of; the second update of client 3 in a round goes by ``3#2``."""
    return label if label in clients else label.rsplit("#", 1)[0]


def named(label: str, labels: Mapping[str, str]) -> str:
    """What people call a client, or its second update in a round."""
    name = client_of(label, labels)
    known = labels.get(name, name)
    return f"{known if known != name else f'client {name}'}{label.removeprefix(name).replace('#', ' #')}"


def counting(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts names as people count: client 2 before client 10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]
