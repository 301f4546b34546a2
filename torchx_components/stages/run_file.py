"""The YAML file of a run and the keys over it: which stages there are, and what each is called with.

An entry reads its own section, and a reference `${prepare.out}` in it sees what stands in the file. Over a whole
pipeline a key has to mean one thing: where `prepare.out=…` is given on the command line, the values that refer to it
are given too, as keys of the stages that they belong to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from torchx_components.stages.processes import MENDABLE, Ended

_REFERENCE = re.compile(r"(?<!\\)\$\{(\.*)(\w+(?:\.\w+)*)\}")
"""The same as in common.config: dots in front stand for the groups around the value, as in OmegaConf."""


def read_sections(file: Path) -> dict[str, Any]:
    """The sections of the file as they stand there, references and all; whether they are right is for the entries.

    Raises:
        Ended: no such file, or not YAML with keys.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Ended(MENDABLE, f"{file}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Ended(MENDABLE, f"{file}: not a readable configuration: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise Ended(MENDABLE, f"{file}: has no sections; a run file has one for each stage")
    return {str(name): section if isinstance(section, dict) else {} for name, section in content.items()}


def keys_by_stage(sections: Mapping[str, Any], stages: Sequence[str], overrides: Sequence[str]) -> dict[str, list[str]]:
    """`key=value …` for each stage: what refers to an overridden value, then the stage's own.

    Args:
        stages: names of all stages that a pipeline can have.
        overrides: `SECTION.key=value`.

    Raises:
        Ended: with every override that is of no stage of the file, and every reference that cannot be followed.
    """
    faults = []
    given: dict[str, str] = {}
    keys: dict[str, list[str]] = {name: [] for name in stages}
    for text in overrides:
        path, equals, value = text.partition("=")
        stage, dot, key = path.partition(".")
        if not equals or not dot or not key:
            faults.append(f"command line: `{text}` is not of the form SECTION.key=value")
        elif stage not in keys:
            faults.append(f"command line: `{text}`: no stage `{stage}`; stages are {', '.join(stages)}")
        elif stage not in sections:
            faults.append(f"command line: `{text}`: the file has no section `{stage}`, so that stage is not run")
        else:
            given[path] = value
            keys[stage].append(f"{key}={value}")
    references = _References(sections, given)
    for stage in stages:
        followed = [*references.changed(stage)] if stage in sections else []
        keys[stage] = [f"{path.partition('.')[2]}={value}" for path, value in followed] + keys[stage]
    if faults or references.faults:
        raise Ended(MENDABLE, *faults, *references.faults)
    return keys


class _References:
    """Values that mean something else than in the file, because what they refer to is given on the command line.

    Args:
        sections: of the file.
        given: dotted path → text of the command line.
    """

    def __init__(self, sections: Mapping[str, Any], given: Mapping[str, str]) -> None:
        self.faults: list[str] = []
        self._sections = sections
        self._given = given

    def changed(self, section: str) -> Iterator[tuple[str, str]]:
        """Path and text of each."""
        for path, value in _leaves(self._sections[section], section):
            if path in self._given or not self._reaches(path, value, ()):
                continue
            if isinstance(value, str):
                yield path, self._text(path, value, ())
            else:
                self._cannot(path, value)

    def _reaches(self, path: str, value: Any, passed: tuple[str, ...]) -> bool:
        """Whether a value depends on one that is given."""
        for target in _targets(path, value):
            if any(key == target or key.startswith(f"{target}.") for key in self._given):
                return True
            if target not in passed and self._reaches(target, self._value(target), (*passed, target)):
                return True
        return False

    def _text(self, path: str, value: str, passed: tuple[str, ...]) -> str:
        def replaced(match: re.Match[str]) -> str:
            target = _target(path, match)
            if target in passed:  # round in a circle: left as it is, for the entry to refuse
                return match[0]
            found = self._given.get(target, self._value(target))
            if isinstance(found, dict | list):
                self._cannot(path, value)
                return ""
            if isinstance(found, bool) or found is None:
                return {True: "true", False: "false", None: "null"}[found]
            return found if target in self._given else self._text(target, str(found), (*passed, target))

        return _REFERENCE.sub(replaced, value)

    def _cannot(self, path: str, value: Any) -> None:
        self.faults.append(
            f"command line: `{path}` is {value!r} in the file, and a part of what it refers to is given on the command "
            f"line; give {path} there as well"
        )

    def _value(self, path: str) -> Any:
        found: Any = self._sections
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found


def _leaves(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def _targets(path: str, value: Any) -> list[str]:
    """What a value refers to; of a group or a list, what anything in it does."""
    if isinstance(value, dict):
        return [target for name, each in value.items() for target in _targets(f"{path}.{name}", each)]
    texts = value if isinstance(value, list) else [value]
    return [_target(path, match) for text in texts if isinstance(text, str) for match in _REFERENCE.finditer(text)]


def _target(path: str, match: re.Match[str]) -> str:
    """The whole path that a reference in the value at `path` names."""
    dots, name = match.groups()
    return ".".join([*path.split(".")[: -len(dots)], name]) if dots else name
