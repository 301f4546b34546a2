"""Tasks as text, and what they ask for."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from common.errors import InputError
from data.batches import EventColumns
from data.ranking.config import FORMS, ActionsConfig
from data.ranking.tasks import BINARY, REGRESSION, Labels, Task, parse_tasks
from data.schema import MISSING_PLAYED_RATIO

TYPES = ("listen", "like", "dislike", "unlike")


def columns_of(event_types: list[int], played: list[int] | None) -> EventColumns:
    events = len(event_types)
    return EventColumns(
        offsets=np.array([0, events]),
        items=np.zeros(events, dtype=np.uint32),
        timestamps=np.arange(events, dtype=np.uint32),
        event_types=np.array(event_types, dtype=np.uint8),
        durations=None,
        organic=None,
        played=None if played is None else np.array(played, dtype=np.uint16),
    )


def faults_of(texts: list[str]) -> list[str]:
    with pytest.raises(InputError) as error:
        parse_tasks(texts)
    return list(error.value.faults)


def test_tasks_are_read() -> None:
    texts = [
        "half: played_ratio >= 50",
        "like:event_type is like,  dislike ",
        "p: played_ratio/1e2",
        "r : event_type number",
    ]
    assert parse_tasks(texts) == (
        Task("half", BINARY, "played_ratio >= 50"),
        Task("like", BINARY, "event_type is like,  dislike"),
        Task("p", REGRESSION, "played_ratio/1e2"),
        Task("r", REGRESSION, "event_type number"),
    )
    assert parse_tasks([]) == ()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("played_ratio >= 50", "has no `NAME:`"),
        ("2nd: played_ratio >= 50", "its name '2nd' is none"),
        (": played_ratio >= 50", "its name '' is none"),
        ("a-b: played_ratio >= 50", "its name 'a-b' is none"),
        ("a: plaid_ratio >= 50", "'plaid_ratio' is no column to predict (did you mean 'played_ratio'?), which are"),
        ("a: duration >= 50", "'duration' is no column to predict, which are played_ratio and event_type"),
        ("a:", "'' is no column to predict"),
        ("a: played_ratio", "behind played_ratio must stand `>=` or `/`"),
        ("a: played_ratio > 50", "behind played_ratio must stand `>=` or `/`"),
        ("a: played_ratio is like", "behind played_ratio must stand `>=` or `/`"),
        ("a: played_ratio >= half", "'half' behind `>=` is no number"),
        ("a: played_ratio >=", "'' behind `>=` is no number"),
        ("a: played_ratio >= nan", "nan behind `>=` must be a finite number"),
        ("a: played_ratio / 0", "0 behind `/` must be a finite number above 0"),
        ("a: played_ratio / 1e-40", "1e-40 behind `/` is too small: 65534 over it is beyond float32"),
        ("a: played_ratio >= 0.5", "0.5 behind `>=` is in percent, 50 being half of the item: must be 0, or 1 … 65534"),
        ("a: played_ratio >= 65535", "65535 behind `>=` is in percent"),
        ("a: played_ratio >= -1", "-1 behind `>=` is in percent"),
        ("a: event_type >= 3", "behind event_type must stand `is` or `number`"),
        ("a: event_type is", "an event type behind `is` has no name"),
        ("a: event_type is like,,dislike", "an event type behind `is` has no name"),
        ("a: event_type number 5", "'5' stands behind `number`"),
        ("a: event_type islike", "behind event_type must stand `is` or `number`"),
    ],
)
def test_what_is_no_task_is_refused_with_the_forms_there_are(text: str, fault: str) -> None:
    with pytest.raises(InputError, match=f"`tasks` has .*{re.escape(fault)}") as error:
        parse_tasks([text])
    assert len(error.value.faults) == 1
    assert "tasks are written `NAME: played_ratio >= 50`" in str(error.value)


def test_all_faults_come_at_once() -> None:
    found = faults_of(["a: played_ratio >= 50", "a: event_type number", "1: event_type", "nothing"])
    assert len(found) == 4
    assert found[-1] == "`tasks` has 2 tasks of the name 'a', which must differ: metrics are called by it"


def test_labels_by_hand() -> None:
    texts = [
        "half: played_ratio >= 50",
        "like: event_type is like",
        "feeling: event_type is dislike, like",
        "share: played_ratio / 100",
    ]
    unknown, nan = MISSING_PLAYED_RATIO, math.nan
    columns = columns_of([0, 1, 2, 3, 0, 0], [49, unknown, 50, 0, 100, 250])
    labels = Labels(parse_tasks(texts), TYPES, has_played=True)
    expected = [
        [0, 0, 0, 0.49],
        [nan, 1, 1, nan],
        [1, 0, 1, 0.5],
        [0, 0, 0, 0],
        [1, 0, 0, 1],
        [1, 0, 0, 2.5],
    ]
    order = np.array([5, 0, 1, 2, 3, 4, 4])
    found = labels.of(columns, order)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32)[order])


def test_the_number_of_an_event_type_is_at_the_end_of_its_name() -> None:
    labels = Labels(parse_tasks(["r: event_type number"]), ("rating-1", "7 stars 4.5", "x10"), has_played=False)
    assert labels.of(columns_of([2, 0, 1], None), np.arange(3)).tolist() == [[10.0], [1.0], [4.5]]


NUMBERS = {
    **{"-1": -1, "0": 0, "1": 1, "+2": 2, ".5": 0.5, "-.5": -0.5, "25e-2": 0.25, "1.5": 1.5},
    **{"rating-4": 4, "rating 4.5": 4.5, "rating: -4": -4, "(-3": -3, "step_-2": -2, "No.5": 5, "about .5": 0.5},
}


def test_a_number_keeps_its_sign_and_its_point() -> None:
    labels = Labels(parse_tasks(["r: event_type number"]), tuple(NUMBERS), has_played=False)
    found = labels.of(columns_of(list(range(len(NUMBERS))), None), np.arange(len(NUMBERS)))
    assert dict(zip(NUMBERS, found[:, 0].tolist(), strict=True)) == NUMBERS


@pytest.mark.parametrize("name", ["1e39", "-1e39", "rating-" + 40 * "4", 400 * "9"])
def test_a_number_that_is_no_float32_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"the number of the event type '{name}' is beyond float32"):
        Labels(parse_tasks(["r: event_type number"]), ("1", name), has_played=False)


@pytest.mark.parametrize("name", ["nan", "inf", "like"])
def test_what_is_no_finite_number_is_none(name: str) -> None:
    with pytest.raises(InputError, match=f"no number stands at the end of the event type '{name}'"):
        Labels(parse_tasks(["r: event_type number"]), ("1", name), has_played=False)


def test_no_tasks_ask_nothing() -> None:
    assert Labels((), TYPES, has_played=False).of(columns_of([0, 1], None), np.arange(2)).shape == (2, 0)


def test_what_a_store_lacks_is_told_all_at_once() -> None:
    tasks = parse_tasks(
        [
            "half: played_ratio >= 50",
            "like: event_type is liked, listen, love",
            "share: played_ratio / 100",
            "rating: event_type number",
            "listen: event_type is listen",
        ]
    )
    with pytest.raises(InputError) as error:
        Labels(tasks, TYPES, has_played=False)
    half, liked, love, share, rating = error.value.faults
    assert half.startswith("task `half: played_ratio >= 50`: the store has no column `played_ratio`")
    assert "no event type 'liked' (did you mean 'like'?); its event types are listen, like, dislike, unlike" in liked
    assert "no event type 'love'" in love
    assert share.startswith("task `share: played_ratio / 100`: the store has no column")
    assert "no number stands at the end of the event type 'listen'" in rating


def test_options_of_ranking() -> None:
    plain = ActionsConfig()
    assert (plain.form, plain.tasks, plain.loss_weights) == (FORMS[0], [], ())
    assert ActionsConfig(tasks=["a: event_type number"]).loss_weights == (1.0,)
    assert ActionsConfig(tasks=["a: event_type number"], weights=[0.5]).loss_weights == (0.5,)
    with pytest.raises(InputError) as error:
        ActionsConfig(tasks=["a: event_type", "b"], weights=[1.0])
    assert len(error.value.faults) == 3
    assert error.value.faults[-1] == "`weights` has 1 numbers for 2 tasks: give one each, or none"
