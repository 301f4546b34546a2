"""Unknown items counted event by event, and leakage that was planted found again."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import schema
from data.event_store import EventStore
from semantic_ids.quality import unknown
from semantic_ids.quality.unknown import auc, deciles, format_unknown, information, unknown_figures
from tests.data.written_log import Event, WrittenLog, written_logs


def obvious_deciles(values: list[int]) -> list[int]:
    return [10 * sum(other < value for other in values) // len(values) for value in values]


@given(st.lists(st.integers(0, 12), max_size=40), st.data())
def test_deciles_hold_what_has_so_many_tenths_below_it(values, data):
    among = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    inside = [value for value, taken in zip(values, among, strict=True) if taken]
    expected_inside = iter(obvious_deciles(inside))
    expected = [next(expected_inside) if taken else 10 for taken in among]
    found = deciles(np.array(values, np.int64), np.array(among, bool))
    np.testing.assert_array_equal(found, expected)


# ── one by one ───────────────────────────────────────────────────────────────────────────────────────────


def obvious_leakage(pairs: list[tuple[bool, bool]]) -> dict[str, Any]:
    """Of (indicator, label): what `_leakage_row` tells, without the interval."""
    with_label = [flag for flag, label in pairs if label]
    without = [flag for flag, label in pairs if not label]
    labels = {flag: [label for other, label in pairs if other == flag] for flag in (False, True)}
    figures: dict[str, Any] = {
        "events": len(pairs),
        "label_share_unknown": sum(labels[True]) / len(labels[True]) if labels[True] else None,
        "label_share_known": sum(labels[False]) / len(labels[False]) if labels[False] else None,
        "auc": None,
        "information_bits": None,
    }
    if with_label and without and labels[True] and labels[False]:
        wins = [1.0 if one > other else 0.5 if one == other else 0.0 for one in with_label for other in without]
        figures["auc"] = pytest.approx(sum(wins) / len(wins))
        bits = 0.0
        for cell in itertools.product((False, True), repeat=2):
            joint = pairs.count(cell) / len(pairs)
            flag = sum(pair[0] == cell[0] for pair in pairs) / len(pairs)
            label = sum(pair[1] == cell[1] for pair in pairs) / len(pairs)
            bits += joint * math.log2(joint / (flag * label)) if joint else 0.0
        figures["information_bits"] = pytest.approx(bits, abs=1e-12)
    return figures


def obvious_pairs(log: WrittenLog, trained: list[list[bool]], missing: set[int], side: bool) -> dict[Any, Any]:
    """(indicator, label) of every event that has both, by names of indicator and label."""
    names = ["next unknown", *log.event_types]
    names += ["organic"] if schema.ORGANIC in log.optional_columns else []
    names += ["played half"] if schema.PLAYED_RATIO in log.optional_columns else []
    pairs: dict[Any, list[tuple[bool, bool]]] = {(flag, name): [] for flag in ("own", "before") for name in names}
    for user, allowed in zip(log.users, trained, strict=True):
        for place, event in enumerate(user):
            if allowed[place] != side:
                continue
            labels = {name: index == event.event_type for index, name in enumerate(log.event_types)}
            if place + 1 < len(user) and allowed[place + 1] == side:
                labels["next unknown"] = user[place + 1].item in missing
            if event.organic is not None:
                labels["organic"] = bool(event.organic)
            if event.played_ratio is not None:
                labels["played half"] = event.played_ratio >= 50
            flags = {"own": event.item in missing}
            if place:
                flags["before"] = user[place - 1].item in missing
            for flag, name in itertools.product(flags, labels):
                if (flag, name) in pairs:
                    pairs[flag, name].append((flags[flag], labels[name]))
    return pairs


def segment_counts(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (
            row["segment"],
            row.get("items", row.get("users")),
            row.get("unknown_item_share"),
            row["training_events"],
            row["training_unknown_share"],
            row["held_out_events"],
            row["held_out_unknown_share"],
        )
        for row in rows
    ]


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def obvious_segment(name: str, members: list[Any], of_items: bool, events: list[Any], missing: set[int]) -> Any:
    """`events` are (member, item, trained)."""
    row: list[Any] = [name, len(members), share(len(missing & set(members)), len(members)) if of_items else None]
    for side in (True, False):
        mine = [item in missing for member, item, trained in events if trained == side and member in members]
        row += [len(mine), share(sum(mine), len(mine))]
    return tuple(row)


@given(written_logs(), st.sampled_from([1, 4, 10_000]), st.data())
@settings(max_examples=25, deadline=None)
def test_everything_is_as_counted_one_by_one(log: WrittenLog, block_events: int, data: st.DataObject) -> None:
    num_items = len(log.artists_N)
    missing = data.draw(st.sets(st.integers(0, num_items - 1), min_size=1))
    known_N = np.array([item not in missing for item in range(num_items)])
    with tempfile.TemporaryDirectory() as folder:
        store = log.store(Path(folder) / "store")
        train_end = store.split().train_end_U.tolist()
        figures = unknown_figures(store, known_N, seed=0, block_events=block_events, replicates=20)
    trained = [[place < end for place in range(len(user))] for user, end in zip(log.users, train_end, strict=True)]
    flat = [
        (number, event.item, event.timestamp, allowed)
        for number, user in enumerate(log.users)
        for event, allowed in zip(user, trained[number], strict=True)
    ]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert (figures["items"], figures["unknown_items"]) == (num_items, len(missing))
    for part, side in (("training", True), ("held_out", False)):
        mine = [item in missing for _, item, _, allowed in flat if allowed == side]
        assert figures["parts"][part] == {"events": len(mine), "unknown_events": sum(mine)}

    by_item = [(item, item, allowed) for _, item, _, allowed in flat]
    plays = [sum(item == played and allowed for _, played, _, allowed in flat) for item in range(num_items)]
    first = [min((t for _, i, t, allowed in flat if i == item and allowed), default=-1) for item in range(num_items)]
    heard = [item for item in range(num_items) if plays[item]]
    for name, values, apart in (("popularity", plays, "never played"), ("age", first, "not in training")):
        tenth = dict(zip(heard, obvious_deciles([values[item] for item in heard]), strict=True))
        groups = {str(d + 1): [item for item in heard if tenth[item] == d] for d in range(10)}
        groups[apart] = [item for item in range(num_items) if item not in heard]
        rows = figures["segments"][name]
        assert segment_counts(rows) == [
            obvious_segment(segment, members, True, by_item, missing) for segment, members in groups.items() if members
        ]
        for row in rows:
            inside = [values[item] for item in groups[row["segment"]]]
            assert (row.get("from"), row.get("to")) == (
                (None, None) if row["segment"] == apart else (min(inside), max(inside))
            )
    groups = {
        "no artist": [item for item in range(num_items) if not log.artists_N[item]],
        "artist known": [item for item in range(num_items) if log.artists_N[item]],
    }
    assert segment_counts(figures["segments"]["artist"]) == [
        obvious_segment(segment, members, True, by_item, missing) for segment, members in groups.items() if members
    ]
    by_user = [(user, item, allowed) for user, item, _, allowed in flat]
    tenths = obvious_deciles([len(user) for user in log.users])
    groups = {str(d + 1): [user for user, tenth in enumerate(tenths) if tenth == d] for d in range(10)}
    assert segment_counts(figures["segments"]["activity"]) == [
        obvious_segment(segment, members, False, by_user, missing) for segment, members in groups.items() if members
    ]

    for part, side in (("training", True), ("held_out", False)):
        pairs = obvious_pairs(log, trained, missing, side)
        rows = {(row["indicator"], row["label"]): row for row in figures["leakage"][part]}
        assert set(rows) == set(pairs)
        for key, row in rows.items():
            expected = obvious_leakage(pairs[key])
            assert {name: row[name] for name in expected} == expected
            assert not row["leaks"], "so few users tell nothing"


def test_auc_and_information_of_tables_known_by_heart():
    same = np.array([[5, 0], [0, 3]])
    assert auc(same) == 1.0
    assert information(same) == (pytest.approx(0.954434), pytest.approx(1.0))
    independent = np.array([[2, 4], [3, 6]])
    assert auc(independent) == pytest.approx(0.5)
    assert information(independent) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert auc(same[::-1]) == 0.0
    assert np.isnan(auc(np.array([[2, 0], [3, 0]])))
    # Shannon's symmetric channel that errs one time in ten: 1 - H(0.1) bits.
    bits, part = information(np.array([[45, 5], [5, 45]]))
    assert bits == part == pytest.approx(1 + 0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))


# ── planted ──────────────────────────────────────────────────────────────────────────────────────────────


def planted_store(folder: Path, organic_if_unknown: float, organic_if_known: float, users: int = 60) -> EventStore:
    """Items 0 … 9, of which 0, 1, 2 are unknown; whether an event is organic depends on that by chance."""
    generator = np.random.default_rng(0)
    histories = []
    for _ in range(users):
        items = generator.integers(10, size=40).tolist()
        chance = [organic_if_unknown if item < 3 else organic_if_known for item in items]
        histories.append(
            [
                Event(item, place, 0, None, int(generator.random() < p), int(generator.integers(100)))
                for place, (item, p) in enumerate(zip(items, chance, strict=True))
            ]
        )
    return WrittenLog(histories, [[]] * 10).store(folder)


KNOWN = np.arange(10) >= 3


def row_of(figures: dict[str, Any], indicator: str, label: str) -> dict[str, Any]:
    (row,) = (row for row in figures["leakage"]["training"] if (row["indicator"], row["label"]) == (indicator, label))
    return row


@pytest.mark.parametrize(
    ("chances", "leaks", "verb"),
    [((0.8, 0.3), True, "predicts"), ((0.3, 0.8), True, "speaks against"), ((0.5, 0.5), False, "says little of")],
)
def test_planted_leakage_is_found_and_its_absence_is(tmp_path, chances, leaks, verb):
    figures = unknown_figures(planted_store(tmp_path / "store", *chances), KNOWN, seed=1)
    row = row_of(figures, "own", "organic")
    assert row["leaks"] is leaks
    assert row["verdict"].startswith(f"unknown {verb} organic: AUC {row['auc']:.3f}")
    assert row["auc_low"] < row["auc"] < row["auc_high"]
    assert row["label_share_unknown"] == pytest.approx(chances[0], abs=0.05)
    assert row["label_share_known"] == pytest.approx(chances[1], abs=0.05)
    for other in (row_of(figures, "before", "organic"), row_of(figures, "own", "played half")):
        assert not other["leaks"]
        assert "says little of" in other["verdict"]
    assert row_of(figures, "own", "like")["verdict"] == "like: cannot be told, the label is alike for all events"
    text = format_unknown(figures)
    assert ("LEAKS" in text) is leaks
    assert row["verdict"] in text
    assert "3 of 10 items are unknown" in text


def test_interval_is_that_of_users_drawn_anew(tmp_path):
    store = planted_store(tmp_path / "store", 0.7, 0.4, users=30)
    figures = unknown_figures(store, KNOWN, seed=1, replicates=3000)
    assert figures["groups"] == 30  # as many as users: each is a group
    train_end = store.split().train_end_U
    tables = np.zeros((30, 2, 2))
    for user in range(30):
        events = slice(store.offsets[user], store.offsets[user] + train_end[user])
        for item, organic in zip(store.column("item")[events], store.column("organic")[events], strict=True):
            tables[user, int(item < 3), organic] += 1
    generator = np.random.default_rng(5)
    scores = [auc(tables[generator.integers(30, size=30)].sum(axis=0)) for _ in range(3000)]
    row = row_of(figures, "own", "organic")
    assert [row["auc_low"], row["auc_high"]] == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.006)


def test_clean_stores_do_not_leak_by_chance(tmp_path, capsys):
    """Of 240 questions to 20 clean stores, 95% intervals leave ½ aside a dozen times; a verdict must not."""
    rows, alarms = [], 0
    for number in range(20):
        generator = np.random.default_rng(number)
        drawn = generator.integers((10, 2, 100), size=(60, 40, 3)).tolist()
        histories = [[Event(item, at, 0, None, *labels) for at, (item, *labels) in enumerate(user)] for user in drawn]
        store = WrittenLog(histories, [[]] * 10).store(tmp_path / str(number))
        figures = unknown_figures(store, KNOWN, seed=1, replicates=200)
        found = [row for part in figures["leakage"].values() for row in part if row["auc"] is not None]
        alarms += any(row["leaks"] for row in found)
        rows += found
    capsys.readouterr()
    outside = sum(not row["auc_low"] <= 0.5 <= row["auc_high"] for row in rows)
    assert 0.01 < outside / len(rows) < 0.1
    assert alarms <= 4  # 1 is expected, 5 in one of four hundred runs


def test_a_label_of_few_users_is_not_judged(tmp_path):
    generator = np.random.default_rng(0)
    histories = [
        [
            Event(item, at, int(user < 5 and item < 3))
            for at, item in enumerate(generator.integers(10, size=20).tolist())
        ]
        for user in range(60)
    ]
    figures = unknown_figures(WrittenLog(histories, [[]] * 10).store(tmp_path / "store"), KNOWN, seed=1)
    row = row_of(figures, "own", "like")
    assert row["label_share_known"] == 0
    assert (row["auc_low"], row["auc_high"], row["leaks"]) == (0.0, 1.0, False)


def test_figures_are_a_function_of_the_seed_and_not_of_blocks(tmp_path, monkeypatch):
    store = planted_store(tmp_path / "store", 0.7, 0.4)
    figures = unknown_figures(store, KNOWN, seed=1)
    assert unknown_figures(store, KNOWN, seed=1, block_events=70) == figures
    assert unknown_figures(store, KNOWN, seed=2) != figures
    monkeypatch.setattr(unknown, "_MOST_GROUPS", 7)
    few = unknown_figures(store, KNOWN, seed=1)
    assert few["groups"] == 7
    assert few["segments"] == figures["segments"]
    row = row_of(few, "own", "organic")
    assert (row["auc_low"], row["auc_high"], row["leaks"]) == (0.0, 1.0, False), "too few groups to tell"
    assert row["auc"] == row_of(figures, "own", "organic")["auc"]


def test_without_unknown_items_there_is_nothing_to_count(tmp_path):
    figures = unknown_figures(planted_store(tmp_path / "store", 0.5, 0.5, users=2), np.ones(10, bool), seed=0)
    assert figures["segments"] == figures["leakage"] == {}
    assert format_unknown(figures) == "no item is unknown"


def test_without_known_items_nothing_can_be_told(tmp_path):
    store = planted_store(tmp_path / "store", 0.5, 0.5, users=12)
    figures = unknown_figures(store, np.zeros(10, bool), seed=0)
    assert figures["parts"]["training"] == {"events": 12 * 38, "unknown_events": 12 * 38}
    row = row_of(figures, "own", "organic")
    assert row["verdict"] == "organic: cannot be told, the flag is alike for all events"
    assert row["auc"] is row["label_share_known"] is None
    assert "100.00% on unknown items" in format_unknown(figures)
