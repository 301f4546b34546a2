"""What is predicted of an action: tasks written as text, and the value of each for every event.

    NAME: played_ratio >= 50            binary: at least half of the item was played
    NAME: event_type is like            binary: the event is of this type, or of one of several: `is like, dislike`
    NAME: played_ratio / 100            regression: the played ratio over 100
    NAME: event_type number             regression: the number that the event type's name is, or that stands at its end:
                                        `-1` → -1, `rating-4` → 4, `rating: -4` → -4

A task asks nothing of an event that lacks the column's value.

Shapes: T tasks · n events · K event types.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.errors import InputError
from data.schema import EVENT_TYPE, MISSING_PLAYED_RATIO, PLAYED_RATIO

if TYPE_CHECKING:
    from data.batches import EventColumns

BINARY, REGRESSION = "binary", "regression"

AT_LEAST, OVER, IS, NUMBER = ">=", "/", "is", "number"
_COLUMNS = {PLAYED_RATIO: (AT_LEAST, OVER), EVENT_TYPE: (IS, NUMBER)}
_KINDS = {AT_LEAST: BINARY, IS: BINARY, OVER: REGRESSION, NUMBER: REGRESSION}
_FORMS = (
    f"tasks are written `NAME: {PLAYED_RATIO} >= 50`, `NAME: {PLAYED_RATIO} / 100`, `NAME: {EVENT_TYPE} is like, "
    f"dislike` or `NAME: {EVENT_TYPE} number`"
)
_RULE = re.compile(r"(?P<column>\w+)\s*(?:(?P<sign>>=|/)|\b(?P<word>is|number)\b)\s*(?P<operand>.*)")
_LAST_NUMBER = re.compile(r"(?:(?<![^\W_])-)?(?:\d+(?:\.\d+)?|(?<![^\W_])\.\d+)$", re.ASCII)
"""Of a name that is more than a number. Behind a letter or a digit `-` is a hyphen, and `.` a full stop."""
_LARGEST = float(np.finfo(np.float32).max)
"""Of labels, which are float32."""
_MOST_PLAYED = MISSING_PLAYED_RATIO - 1

Compute = Callable[["EventColumns", np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Task:
    """One of a ranking model's predictions.

    Attributes:
        name: as metrics call it.
        kind: BINARY or REGRESSION.
        text: as it was written, without the name.
    """

    name: str
    kind: str
    text: str


@dataclass(frozen=True)
class _Rule:
    """A task's text, taken apart: `number` belongs to AT_LEAST and OVER, `names` to IS."""

    operator: str
    number: float = 0.0
    names: tuple[str, ...] = ()


def parse_tasks(texts: Sequence[str]) -> tuple[Task, ...]:
    """Tasks as they are written in a configuration.

    Raises:
        InputError: with every fault found.
    """
    tasks: list[Task] = []
    faults: list[str] = []
    named: Counter[str] = Counter()
    for text in texts:
        name, colon, rule_text = (part.strip() for part in text.partition(":"))
        found: list[str] = []
        if not colon:
            found.append("has no `NAME:` before what is predicted")
        else:
            named[name] += 1
            if not name.isidentifier():
                found.append(f"its name {name!r} is none: letters, digits and `_`, no digit first")
            rule = _rule_of(rule_text)
            if isinstance(rule, str):
                found.append(rule)
            else:
                tasks.append(Task(name, _KINDS[rule.operator], rule_text))
        faults += [f"`tasks` has {text!r}: {fault}; {_FORMS}" for fault in found]
    faults += [
        f"`tasks` has {count} tasks of the name {name!r}, which must differ: metrics are called by it"
        for name, count in named.items()
        if count > 1
    ]
    if faults:
        raise InputError(*faults)
    return tuple(tasks)


def _rule_of(text: str) -> _Rule | str:
    """The rule that a task's text is, or what is wrong with it."""
    column = (re.match(r"\w*", text) or [""])[0]
    if column not in _COLUMNS:
        return f"{column!r} is no column to predict{_nearest(column)}, which are {' and '.join(_COLUMNS)}"
    parts = _RULE.fullmatch(text)
    operator = (parts["sign"] or parts["word"]) if parts else ""
    if parts is None or operator not in _COLUMNS[column]:
        return f"behind {column} must stand {' or '.join(f'`{sign}`' for sign in _COLUMNS[column])}"
    operand = parts["operand"].strip()
    if operator == NUMBER:
        return _Rule(NUMBER) if not operand else f"{operand!r} stands behind `number`, the end of this form"
    if operator == IS:
        names = tuple(name.strip() for name in operand.split(","))
        return _Rule(IS, names=names) if all(names) else "an event type behind `is` has no name"
    try:
        number = float(operand)
    except ValueError:
        return f"{operand!r} behind `{operator}` is no number"
    if not math.isfinite(number) or (operator == OVER and number <= 0):
        return f"{operand} behind `{operator}` must be a finite number{' above 0' if operator == OVER else ''}"
    if operator == OVER and number * _LARGEST < _MOST_PLAYED:
        return f"{operand} behind `/` is too small: {_MOST_PLAYED} over it is beyond float32"
    if operator == AT_LEAST and number != 0 and not 1 <= number <= _MOST_PLAYED:
        return f"{operand} behind `>=` is in percent, 50 being half of the item: must be 0, or 1 … {_MOST_PLAYED}"
    return _Rule(operator, number)


class Labels:
    """The values of tasks in one store.

    Args:
        tasks: of `parse_tasks`.
        event_types: names of the store's event types, K of them.
        has_played: whether the store knows how much of an item was played.

    Raises:
        InputError: a task asks for what the store does not have; with every fault found.
    """

    def __init__(self, tasks: Sequence[Task], event_types: Sequence[str], has_played: bool) -> None:
        """Find out what each task means here."""
        self.tasks = tuple(tasks)
        faults: list[str] = []
        self._computed: list[Compute] = []
        for task in self.tasks:
            rule = _rule_of(task.text)
            assert isinstance(rule, _Rule), rule
            found = _faults_in_store(rule, event_types, has_played)
            faults += [f"task `{task.name}: {task.text}`: {fault}" for fault in found]
            if not found:
                self._computed.append(_computed_by(rule, event_types))
        if faults:
            raise InputError(*faults)

    def of(self, columns: EventColumns, at_n: np.ndarray) -> np.ndarray:
        """What the tasks ask of some events.

        Args:
            columns: the store's, with `played` where it was said to be there.
            at_n: int64, flat positions of the events.

        Returns:
            float32 [n, T]; 0 or 1 of a binary task, NaN where a task asks nothing.
        """
        values_nT = np.empty((len(at_n), len(self.tasks)), dtype=np.float32)
        for place, compute in enumerate(self._computed):
            values_nT[:, place] = compute(columns, at_n)
        return values_nT


def _faults_in_store(rule: _Rule, event_types: Sequence[str], has_played: bool) -> list[str]:
    known = f"its event types are {', '.join(event_types)}"
    if rule.operator == IS:
        unknown = [name for name in rule.names if name not in event_types]
        return [f"the store has no event type {name!r}{_nearest(name, event_types)}; {known}" for name in unknown]
    if rule.operator == NUMBER:
        numbers = {name: _number_of(name) for name in event_types}
        bare = [name for name, number in numbers.items() if number is None]
        large = [name for name, number in numbers.items() if number is not None and abs(number) > _LARGEST]
        return [
            f"no number stands at the end of the event type {name!r}, but must of each; {known}" for name in bare[:1]
        ] + [f"the number of the event type {name!r} is beyond float32" for name in large[:1]]
    if not has_played:
        return [f"the store has no column `{PLAYED_RATIO}`, as its source has none: predict the {EVENT_TYPE} instead"]
    return []


def _computed_by(rule: _Rule, event_types: Sequence[str]) -> Compute:
    if rule.operator in (IS, NUMBER):
        values_K = np.array([_value_of_type(rule, name) for name in event_types], dtype=np.float32)
        return lambda columns, at_n: values_K[columns.event_types[at_n]]

    def of_played(columns: EventColumns, at_n: np.ndarray) -> np.ndarray:
        assert columns.played is not None
        played_n = columns.played[at_n]
        values_n = played_n >= rule.number if rule.operator == AT_LEAST else played_n / rule.number
        return np.where(played_n == MISSING_PLAYED_RATIO, np.nan, values_n)

    return of_played


def _value_of_type(rule: _Rule, name: str) -> float:
    if rule.operator == IS:
        return float(name in rule.names)
    number = _number_of(name)
    assert number is not None
    return number


def _number_of(name: str) -> float | None:
    """The number that an event type's name is, or that stands at its end; None where there is none."""
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return number
    found = _LAST_NUMBER.search(name)
    return None if found is None else float(found[0])


def _nearest(name: str, options: Sequence[str] = tuple(_COLUMNS)) -> str:
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.7)
    return f" (did you mean {near[0]!r}?)" if near else ""
