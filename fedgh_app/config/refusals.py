"""Which choices do not go together. Each says so in its own file; everything that none refuses combines.

A file under ``conf/`` may hold two lists, ``needs`` and ``refuses``; here those of a ``conf/strategy/mine.yaml``::

    needs:
      - objective: dyn                  # a choice of another group
        because: the server's half corrects what the clients' half adds
      - when: {.scheme: fast}           # only where its own value, strategy.scheme, is so
        optimizer.momentum: [0, null]   # a value: one of these
        or: {optimizer: adam}           # that does as well
        because: …
      - objective.alpha: ${strategy.alpha}   # the same value as that key's
        because: …
    refuses:
      - at: topology.edge_strategy      # where it was chosen as strategy@topology.edge_strategy=mine
        topology: edge_cloud
        because: …
      - mode.buffer: < 2 num_bad + 3    # a number, or the size of a table, below what its own value num_bad makes
        because: …
        expected: a larger one          # what is right, where the rest does not tell

All conditions of an entry are meant together.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from fedgh_app.config import choices as files
from fedgh_app.config.choices import TERMS, groups, shown, values_of
from fedgh_app.errors import UserError

Conditions = Mapping[str, object]

LIMIT = re.compile(r"< (\d+) (\w+) \+ (\d+)")
REFERENCE = re.compile(r"\$\{(.+)\}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One entry of a choice's ``needs`` or ``refuses``."""

    group: str  # whose it is
    choice: str
    at: str  # the node for which the choice was made: the group's own, or one below another group
    because: str
    expected: str
    premises: Conditions  # what each key is where the rule applies
    needed: Conditions  # what each key must be then; empty where that is refused as it is
    instead: Conditions  # what does as well as all of ``needed``

    @property
    def first(self) -> str:
        """The choice, or those of its values, that the rule is about."""
        own = [_equation(key, value) for key, value in self.premises.items() if key.startswith(f"{self.at}.")]
        return " ".join(own) or f"{self.group}{'' if self.at == self.group else f'@{self.at}'}={self.choice}"

    @property
    def second(self) -> str:
        """What it does not go with."""
        others = [_equation(key, value) for key, value in self.others.items()]
        needed = [key if value is None else f"{key} other than {_one_of(value)}" for key, value in self.needed.items()]
        return ", ".join([*others, *([" or ".join(needed)] if needed else [])])

    @property
    def others(self) -> Conditions:
        """The premises but for the choice's own values; a key that is not set says nothing to a reader."""
        given = {key: value for key, value in self.premises.items() if value is not None}
        return {key: value for key, value in given.items() if not key.startswith(f"{self.at}.")}

    @property
    def reason(self) -> str:
        """Why, and what would do instead."""
        return f"{self.because}; expected {self.expected}"


@dataclasses.dataclass(frozen=True)
class Composed:
    """A config and the choices in it, by the keys that Hydra has: ``strategy``, ``strategy@topology.edge_strategy``."""

    config: DictConfig
    choices: Mapping[str, str]

    def check(self) -> None:
        """Refuse (UserError) choices that mean nothing together, with the reason."""
        for rule in self.rules():
            if self.breaks(rule):
                raise UserError(f"{rule.first}{self._with(rule)}: {rule.reason}")

    def rules(self) -> Iterator[Rule]:
        """What the choices say, each where it was made."""
        for key, choice in self.choices.items():
            group, _, place = key.partition("@")
            yield from (rule for rule in rules_of(group, choice) if rule.at == (place or group))

    def breaks(self, rule: Rule) -> bool:
        """Whether the config is what a rule refuses."""
        kept = [way for way in (rule.needed, rule.instead) if way and self._hold(rule, way)]
        return self._hold(rule, rule.premises) and not kept

    def _with(self, rule: Rule) -> str:
        broken = [key for key, wanted in rule.needed.items() if not self._holds(rule, key, wanted)]
        values = {key: self._value(key) for key in (*rule.others, *broken[:1])}
        told = [key if isinstance(value, DictConfig) else f"{key}={shown(value)}" for key, value in values.items()]
        return " with " * bool(told) + ", ".join(told)

    def _hold(self, rule: Rule, conditions: Conditions) -> bool:
        return all(self._holds(rule, key, wanted) for key, wanted in conditions.items())

    def _holds(self, rule: Rule, key: str, wanted: object) -> bool:
        value = self._value(key)
        if isinstance(wanted, list):
            return value in wanted
        if limit := LIMIT.fullmatch(str(wanted)):
            factor, own, more = limit.groups()
            size = len(value) if isinstance(value, DictConfig | ListConfig) else value
            return size is not None and size < int(factor) * (self._value(f"{rule.at}.{own}") or 0) + int(more)
        if other := REFERENCE.fullmatch(str(wanted)):
            return bool(value == self._value(other[1]))
        return bool(value == wanted)

    def _value(self, key: str) -> Any:
        return self.choices.get(key) if key in self.choices or "@" in key else OmegaConf.select(self.config, key)


def chosen(base: DictConfig, config: DictConfig, choices: Mapping[str, str]) -> dict[str, str]:
    """The choices in a config: for a ``_target_`` that was set alone the choice that builds it, else its class."""
    taken = dict(choices)
    for key in choices:
        group, _, place = key.partition("@")
        old, new = (OmegaConf.select(node, f"{place or group}._target_") for node in (base, config))
        if new != old:
            same = (name for name in groups()[group] if values_of(group, name).get("_target_") == new)
            taken[key] = next(same, str(new))
    return taken


def rules_of(group: str, choice: str) -> tuple[Rule, ...]:
    """What a choice says of others, in its file and in that of a choice which it extends by Hydra's ``defaults``."""
    return _read(files.CONF, group, choice)


@functools.cache
def _read(folder: Path, group: str, choice: str) -> tuple[Rule, ...]:
    file = folder / group / f"{choice}.yaml"
    if not file.is_file():
        return ()
    node: Any = OmegaConf.to_container(OmegaConf.load(file))
    extended = [name for name in node.get("defaults", []) if isinstance(name, str) and name != "_self_"]
    rules = [dataclasses.replace(rule, choice=choice) for name in extended for rule in _read(folder, group, name)]
    for term in TERMS:
        for entry in node.get(term) or ():
            try:
                rules.append(_rule(group, choice, term, dict(entry)))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{file}: {term}: {error}; expected conditions and `because`") from None
    return tuple(rules)


def _rule(group: str, choice: str, term: str, entry: dict[str, Any]) -> Rule:
    because, at = str(entry.pop("because")), str(entry.pop("at", group))
    expected, *conditions = entry.pop("expected", None), entry.pop("when", {}), entry.pop("or", {}), entry
    known = {*groups(), *map(str, OmegaConf.load(files.CONF / "config.yaml"))}
    if unknown := [key for way in conditions for key in way if key[0] != "." and re.split("[.@]", key)[0] not in known]:
        raise ValueError(f"{unknown[0]} is no group and no key")
    when, instead, entry = ({f"{at}{key}" if key[0] == "." else key: way[key] for key in way} for way in conditions)
    if term == "needs":
        ways = (" ".join(_equation(key, _listed(way[key])[0]) for key in way) for way in (entry, instead) if way)
        expected = expected or ", or ".join(ways)
        return Rule(group, choice, at, because, expected, when, entry, instead)
    return Rule(group, choice, at, because, expected or _others(entry), {**when, **entry}, {}, instead)


def _others(conditions: Conditions) -> str:
    """The choices that are not refused, where one group is."""
    (key,) = (key for key in conditions if key.partition("@")[0] in groups())
    group, _, place = key.partition("@")
    left = [name for name in groups()[group] if name not in _listed(conditions[key])]
    return " or ".join(f"{key}={name}" for name in left) if len(left) < 3 else f"another {place or group}"


def _equation(key: str, wanted: object) -> str:
    return f"{key} {wanted}" if LIMIT.fullmatch(str(wanted)) else f"{key}={_one_of(wanted)}"


def _one_of(wanted: object) -> str:
    return REFERENCE.sub(r"\1", " or ".join(shown(value) for value in _listed(wanted) if value is not None))


def _listed(wanted: object) -> list[object]:
    return wanted if isinstance(wanted, list) else [wanted]


def table() -> str:
    """All that is refused, as a table in Markdown; choices of which the same is said share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for group, names in groups().items():
        for rule in (rule for name in names for rule in rules_of(group, name)):
            key, _, value = rule.first.rpartition("=")
            rows.setdefault((key, rule.second, rule.reason), []).append(value)
    lines = ["| this | with this | why not, and what instead |", "|---|---|---|"]
    for (key, second, reason), values in rows.items():
        several = f"{', '.join(values[:-1])} or {values[-1]}" if len(values) > 1 else values[0]
        lines.append(f"| {key}={several} | {second} | {reason} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
