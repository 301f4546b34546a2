"""Configuration: one dataclass an entry point, one YAML file a named run, `key=value` on the command line.

A YAML file has one section an entry point (`prepare`, `fit_ids`, `train`, …), so that one file describes a
run from raw log to report. An entry reads its own section; keys on the command line are relative to it and win over
the file, the last one where a key is given twice.

A value in a file may refer to another of the same file, `store: ${prepare.out}`, and sees what stands there, not what
some command line said. Nothing else is interpolated: OmegaConf's resolvers (`${oc.env:HOME}`) are refused, and so is
`${…}` on the command line, where the shell can do it.

A value must have its key's type: `run: 2024` is a number, `run: "2024"` a name. On the command line everything is
text, which is read as the key's type: `run=2024` is a name there. `null` stands for "not given" where a key allows it.

All faults are reported at once, before any work starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import InputError, Lost, Regression, Stopped
from common.faults import is_main_rank, report_faults, report_lost

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

T = TypeVar("T")

SECTIONS = ("synthesize", "prepare", "describe", "fit_ids", "encode_ids", "plan", "train", "evaluate")
"""The entry points that a YAML file may configure."""

REQUIRED = "???"
"""OmegaConf's mark for a value that the user must give."""


def option(default: Any, help: str, *, choices: Sequence[str] = (), minimum: float | None = None) -> Any:
    """A configuration field: its default, its meaning, and the rule that its value must keep.

    Its annotation is `str`, `int`, `float` or `bool`, one of them `| None`, or a list of one of them.
    """
    metadata = {"help": help, "choices": tuple(choices), "minimum": minimum}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(schema: type[T], help: str) -> T:
    """A nested group of options."""
    grouped: T = field(default_factory=schema, metadata={"help": help})
    return grouped


@dataclass
class Flags:
    """What stands on the command line beside the keys."""

    json: bool


def run_entry(
    name: str, section: str, schema: type[T], work: Callable[[T], dict[str, Any]], argv: Sequence[str] | None
) -> int:
    """Parse, work, report: the whole of an entry point's `main`.

    `work` returns a JSON-like summary, printed as the last line of standard output with `--json`; the docstring of its
    module heads `--help`.

    Returns:
        The exit status: 0 done, 2 a fault the user can mend, 3 done and found worse than what it was held against, 130
        interrupted, 143 ended by SIGTERM with work saved. Where the job fell apart it does not return: the process
        ends with status 4, or that of the peer whose own fault it was.
    """
    from common.startup import imports_are_done  # by whom it is imported, the collector becomes rarer

    imports_are_done()
    flags = Flags(json=False)
    try:
        description = sys.modules[work.__module__].__doc__ or ""
        config, flags = parse(name, section, schema, sys.argv[1:] if argv is None else list(argv), description)
        _report(flags, work(config))
    except InputError as error:
        report_faults(name, error.faults)
        return 2
    except OSError as error:
        # A full disk, a read-only folder, a file that went away: the user's to mend, and seldom a bug of ours.
        report_faults(name, (describe_os_error(error),))
        return 2
    except Regression as worse:
        _report(flags, worse.summary)
        if is_main_rank():
            print(f"{name}: {worse}", file=sys.stderr)
        return worse.status
    except Lost as lost:
        report_lost(name, str(lost), aloud=lost.aloud)
        sys.stdout.flush()
        # What still waits for a peer, a thread of gloo or of a checkpoint, would keep the interpreter from ending.
        os._exit(lost.status)
    except Stopped as stopped:
        if is_main_rank():
            print(f"{name}: {stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        if is_main_rank():
            print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    return 0


def _report(flags: Flags, summary: dict[str, Any]) -> None:
    if flags.json and is_main_rank():
        print(json.dumps(summary), flush=True)


def parse(name: str, section: str, schema: type[T], argv: Sequence[str], description: str = "") -> tuple[T, Flags]:
    """Resolve the command line into a configuration object.

    Raises:
        InputError: with every unknown key, bad value and broken rule found.
        SystemExit: after `--help` and `--print-config`.
    """
    parser = _Parser(
        prog=f"python -m {name}",
        usage=f"python -m {name} [--config FILE] [--json] [--print-config] [key=value …]",
        description=description.strip(),
        epilog=describe_keys(schema),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"YAML file; its section `{section}` is read")
    parser.add_argument("--json", action="store_true", help="print a summary as the last line of standard output")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, dots for nested keys")
    given = parser.parse_intermixed_args(list(argv))
    config = resolve(schema, section, given.config, given.overrides)
    if given.print_config:
        if is_main_rank():
            print(to_yaml(config), end="")
        raise SystemExit(0)
    return config, Flags(json=given.json)


class _Parser(argparse.ArgumentParser):
    """Faults as an InputError, not argparse's own exit; help from one rank."""

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"command line: {message}; keys are given as key=value, --help lists them")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if is_main_rank():
            super()._print_message(message, file)


def describe_os_error(error: OSError) -> str:
    """What failed and on which file; of a write to an open file, the operating system does not tell its name."""
    files = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason = error.strerror or str(error) or type(error).__name__
    if not files and not error.strerror and str(error):  # raised by us or by a library, which said what it is about
        return reason
    return f"{files or 'the operating system'}: {reason}"


def resolve(schema: type[T], section: str, file: Path | None, overrides: Sequence[str]) -> T:
    """Defaults, then the file's section, then the overrides, checked as a whole."""
    faults: list[str] = []
    settings: list[_Setting] = []
    if file is not None:
        content = _read_section(file, section, faults)
        if content is None:  # what the file would have set is not known, so no key can be called missing
            _parse_overrides(overrides, faults)
            raise InputError(*faults)
        settings += _leaves(schema, content, str(file))
    settings += _parse_overrides(overrides, faults)
    return _apply(schema, settings, faults)


def load_resolved(schema: type[T], file: Path) -> T:
    """Read back a whole configuration that `to_yaml` wrote (a run folder's `config.yaml`)."""
    return from_plain(schema, _resolved(_load_yaml(file), file), str(file))


def from_plain(schema: type[T], tree: dict[str, Any], origin: str) -> T:
    """A configuration from plain values (a manifest), checked as one from a file; `origin` names it in faults."""
    return _apply(schema, _leaves(schema, tree, origin), [])


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration as plain values, readable by `from_plain`."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML, readable by `load_resolved`."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def describe_keys(schema: type[Any]) -> str:
    """Name, type, default, rule and meaning of each key, and the meaning of each group."""
    return "\n".join(["keys:", *_describe(schema, "")])


def _describe(schema: type[Any], prefix: str) -> Iterator[str]:
    for name, leaf, kind in _fields(schema):
        if dataclasses.is_dataclass(kind):
            yield f"  {prefix}{name}.…: {leaf.metadata['help']}"
            yield from _describe(typing.cast(type[Any], kind), f"{prefix}{name}.")
            continue
        default = leaf.default_factory() if leaf.default_factory is not MISSING else leaf.default
        facts = [_type_name(kind), "required" if default == REQUIRED else f"default {json.dumps(default)}"]
        if leaf.metadata["choices"]:
            facts.append(f"one of {', '.join(leaf.metadata['choices'])}")
        if leaf.metadata["minimum"] is not None:
            facts.append(f"at least {leaf.metadata['minimum']}")
        yield f"  {prefix}{name} ({', '.join(facts)})\n      {leaf.metadata['help']}"


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Setting:
    """A key, the value given to it, and where."""

    key: str
    value: Any
    origin: str
    is_text: bool = False  # yet to be read as the key's type


def _load_yaml(file: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(file)
    except FileNotFoundError:
        raise InputError(f"{file}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{file}: not a readable configuration: {_one_line(error)}") from None
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{file}: holds a list, expected keys and values")
    faults = [
        f"{file}: `{text}`: only ${{section.key}} is replaced in a value; write the value itself"
        for text in _texts(OmegaConf.to_container(loaded, resolve=False))
        if "${" in _REFERENCE.sub("", text)
    ]
    if faults:
        raise InputError(*faults)
    return loaded


_REFERENCE = re.compile(r"(?<!\\)\$\{\.*\w+(\.\w+)*\}")


def _texts(tree: Any) -> Iterator[str]:
    """Every text in a tree of plain values."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts(value)


def _resolved(node: DictConfig, file: Path) -> dict[str, Any]:
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    except OmegaConfBaseException as error:
        raise InputError(f"{file}: not a readable configuration: {_one_line(error)}") from None


def _read_section(file: Path, section: str, faults: list[str]) -> dict[str, Any] | None:
    """The content of a file's section, references replaced; what is wrong with the file is added to `faults`.

    None where there is no content to be had.
    """
    try:
        loaded = _load_yaml(file)
        tree = typing.cast(dict[Any, Any], OmegaConf.to_container(loaded, resolve=False))
        for name in map(str, tree):
            if name not in SECTIONS:
                faults.append(
                    f"{file}: unknown section `{name}`{_nearest(name, SECTIONS)}; sections are {', '.join(SECTIONS)}"
                )
        if section not in tree:
            faults.append(f"{file}: has no section `{section}`, which this command reads")
        elif isinstance(tree[section], dict):
            return _resolved(loaded[section], file)
        elif tree[section] is None:  # a heading with nothing under it is fine: all defaults
            return {}
        else:
            faults.append(f"{file}: section `{section}` holds {tree[section]!r}, expected keys and values")
    except InputError as error:
        faults.extend(error.faults)
    return None


def _parse_overrides(overrides: Sequence[str], faults: list[str]) -> list[_Setting]:
    settings = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if equals and key:
            settings.append(_Setting(key, value, "command line", is_text=True))
        else:
            faults.append(f"command line: `{text}` is not of the form key=value")
    return settings


def _leaves(schema: type[Any], tree: dict[str, Any], origin: str, prefix: str = "") -> list[_Setting]:
    """Flatten a tree as deep as the schema has groups: `{"model": {"width": 64}}` → `("model.width", 64)`."""
    groups = {name: kind for name, _, kind in _fields(schema) if dataclasses.is_dataclass(kind)}
    found: list[_Setting] = []
    for name, value in tree.items():
        if name in groups and isinstance(value, dict):
            found += _leaves(typing.cast(type[Any], groups[name]), value, origin, f"{prefix}{name}.")
        else:
            found.append(_Setting(f"{prefix}{name}", value, origin))
    return found


# ── checking ─────────────────────────────────────────────────────────────────────────────────────────────


def _apply(schema: type[T], settings: list[_Setting], faults: list[str]) -> T:
    known = {key: kind for key, _, kind in _walk(schema)}
    config = typing.cast(DictConfig, OmegaConf.structured(schema))
    for setting in settings:
        key, kind = setting.key, known.get(setting.key)
        first_within = next((name for name in known if name.startswith(f"{key}.")), None)
        if first_within:
            faults.append(f"{setting.origin}: `{key}` is a group of keys; set one of them, e.g. `{first_within}`")
        elif kind is None:
            faults.append(f"{setting.origin}: unknown key `{key}`{_nearest(key, list(known))}")
        elif any("${" in text for text in _texts(setting.value)):
            faults.append(
                f"{setting.origin}: `{key}` is {setting.value!r}: ${{…}} is not replaced here; write the value itself"
            )
        else:
            try:
                value = _read_text(setting.value, kind) if setting.is_text else setting.value
                OmegaConf.update(config, key, _checked(value, kind))
            except (ValueError, yaml.YAMLError, OmegaConfBaseException):
                hint = "; put it in quotes" if not setting.is_text and str in _alternatives(kind) else ""
                faults.append(f"{setting.origin}: `{key}` is {setting.value!r}, expected {_type_name(kind)}{hint}")
    built = _build(schema, config, "", faults)
    if faults:
        raise InputError(*faults)
    assert built is not None
    return built


def _read_text(text: str, kind: Any) -> Any:
    """A value from the command line. YAML would make 7 of 007 and a duration of 12:30; the key's type decides here.

    Raises:
        ValueError: the text cannot be read as `kind`.
    """
    kinds = _alternatives(kind)
    if text == "null" and NoneType in kinds:
        return None
    if bool in kinds:
        return {"true": True, "false": False}.get(text.lower(), text)
    for plain in (str, int, float):
        if plain in kinds:
            return plain(text)
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])))["value"]


def _checked(value: Any, kind: Any) -> Any:
    """`value`, if it is a `kind` already: OmegaConf alone would take "yes" for a bool and 7 for a str.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, list) and typing.get_origin(kind) is list:
        return [_checked(element, typing.get_args(kind)[0]) for element in value]
    kinds = _alternatives(kind)
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        raise ValueError
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    return value


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have: `str | None` → `(str, NoneType)`."""
    return (kind,) if isinstance(kind, type) or typing.get_origin(kind) is list else typing.get_args(kind)


def _build(schema: type[T], config: DictConfig, prefix: str, faults: list[str]) -> T | None:
    """Instantiate from the leaves up, so that each group's own rules are checked and all faults gathered."""
    before = len(faults)
    values: dict[str, Any] = {}
    for name, leaf, kind in _fields(schema):
        key = f"{prefix}{name}"
        if dataclasses.is_dataclass(kind):
            values[name] = _build(typing.cast(type[Any], kind), config[name], f"{key}.", faults)
        elif OmegaConf.is_missing(config, name):
            faults.append(f"`{key}` is required: {leaf.metadata['help']}")
        else:
            value = OmegaConf.to_container(config[name]) if OmegaConf.is_config(config[name]) else config[name]
            values[name] = value
            faults.extend(_rule_faults(key, value, leaf.metadata["choices"], leaf.metadata["minimum"]))
    if len(faults) > before:
        return None
    try:
        return schema(**values)
    except InputError as error:
        # A group names its keys relative to itself.
        faults.extend(
            f"`{prefix}{fault[1:]}" if fault.startswith("`") else f"{prefix}{fault}" for fault in error.faults
        )
    except ValueError as error:
        faults.append(f"`{prefix.rstrip('.')}`: {error}" if prefix else str(error))
    return None


def _rule_faults(key: str, value: Any, choices: Sequence[str], minimum: float | None) -> Iterator[str]:
    for element in value if isinstance(value, list) else [value]:
        if element is None:
            continue
        if choices and element not in choices:
            known = ", ".join(choice or "''" for choice in choices)
            yield f"`{key}` is {element!r}, expected one of {known}{_nearest(str(element), choices)}"
        if minimum is not None and element < minimum:
            yield f"`{key}` is {element}, must be at least {minimum}"


def _fields(schema: type[Any]) -> list[tuple[str, dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(schema)
    return [(leaf.name, leaf, hints[leaf.name]) for leaf in dataclasses.fields(schema)]


def _walk(schema: type[Any], prefix: str = "") -> list[tuple[str, dataclasses.Field[Any], Any]]:
    found = []
    for name, leaf, kind in _fields(schema):
        if dataclasses.is_dataclass(kind):
            found += _walk(typing.cast(type[Any], kind), f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", leaf, kind))
    return found


def _nearest(name: str, options: Sequence[str]) -> str:
    # A nested key is often given without its group, or in the wrong one.
    last = name.rsplit(".", 1)[-1]
    same = [known for known in options if known.rsplit(".", 1)[-1] == last]
    near = dict.fromkeys(same + difflib.get_close_matches(name, options, n=3, cutoff=0.6))
    return f"; did you mean {' or '.join(f'`{key}`' for key in list(near)[:3])}?" if near else ""


def _type_name(kind: Any) -> str:
    return "finite float" if kind is float else kind.__name__ if isinstance(kind, type) else str(kind)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
