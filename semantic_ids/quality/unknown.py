"""Where unknown items are, and whether being unknown gives away what a model should have to learn.

Everything is counted in one pass over the store, in blocks of whole users, apart for training events (those that
`data.split` lets training see) and held-out ones (all others, gaps of the split included).

Segments, of items or of users. A decile d of 1 … 10 holds what has at least (d - 1) and less than d tenths of its kind
below it; equals stay together, so that deciles of much repeated values are uneven, and some may be empty:
    popularity  deciles of training plays, 10 the most played; items that training never plays apart
    artist      items with an artist in the catalogue, and those without
    age         deciles of the time of the item's first training event, 10 the newest; items without one apart
    activity    deciles of the events of a user, training and held-out together, 10 the most active

Leakage: the indicator u, whether the item of an event is unknown (`own`), or that of the event before it in the same
history (`before`), against labels of the event: `next unknown` (the next event in the same history, on the same side of
the split), each event type against the others, `organic`, and `played half` (a played ratio of 50% or more). Of a
yes/no indicator AUC = ½ + ½ (P(u | label) - P(u | no label)). Its 95% interval and its standard error, which the
verdict is by (`AUC_MARGIN`, `CHANCE`), are from a bootstrap over groups of users: user i belongs to group i modulo G,
so that a group is a like sample of the store, and a user's events stay together.

U users · E events of a block · N items · T event types · G groups of users · R replicates.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from common.progress import Progress
from common.seeding import derive_seed
from data import schema
from data.event_store import EventStore
from data.leakage import user_blocks
from data.statistics_blocks import BLOCK_EVENTS, Block

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

AUC_MARGIN = 0.02
"""An indicator leaks where its AUC is further from ½ than this, and further than chance explains (`CHANCE`): in
millions of events the smallest difference is certain, but gives a model nothing to live on."""
CHANCE = 0.05
"""How likely chance may find a leak anywhere in a store without one, about. All questions share it evenly (Bonferroni):
at 5% each, dozens of questions would find one in every other store. The shown intervals are 95% each."""
LEAST_GROUPS = 20
"""Groups of users that must have events with the label, and without: fewer do not say how the AUC varies, so that its
interval is 0 to 1 and nothing leaks."""
REPLICATES = 1000
PLAYED_HALF = 50

PARTS = ("training", "held_out")
INDICATORS = {"own": "unknown", "before": "an unknown item before"}
SEGMENTS = ("popularity", "artist", "age", "activity")

_MOST_GROUPS = 200
_MOST_CELLS = 1 << 22
_APART = 10
"""Beside deciles 0 … 9."""
_MISSING = 2
_NEVER = np.iinfo(np.int64).max


def unknown_figures(
    store: EventStore, known_N: Bools, *, seed: int, block_events: int = BLOCK_EVENTS, replicates: int = REPLICATES
) -> dict[str, Any]:
    """Count unknown items by segment, and what being unknown tells, JSON-like.

    Args:
        known_N: which items have codes.
        seed: of the bootstrap.
        block_events: events in memory at a time; a longer history is a block by itself.

    Returns:
        `items`, `unknown_items`; `parts`: `events` and `unknown_events` by part; `segments`: rows by segment, see
        `_row`; `leakage`: rows by part, see `_leakage_row`; `groups`, `replicates` and `margin` of the verdicts. Where
        no item is unknown, segments and leakage are empty, and the store is not read.
    """
    assert len(known_N) == store.num_items
    unknown_N = ~known_N
    figures: dict[str, Any] = {
        "items": store.num_items,
        "unknown_items": int(unknown_N.sum()),
        "parts": {},
        "segments": {},
        "leakage": {},
        "margin": AUC_MARGIN,
    }
    if not unknown_N.any():
        return figures
    counted = _Counts(store, unknown_N)
    names = (schema.ITEM, schema.TIMESTAMP, schema.EVENT_TYPE, schema.ORGANIC, schema.PLAYED_RATIO)
    columns = {name: store.column(name) for name in names if store.has_column(name)}
    with Progress("count unknown items", store.num_events, "events") as progress:
        for first, last in user_blocks(store.offsets, block_events):
            block = Block.cut(store.offsets, columns, first, last)
            counted.add(block, first)
            progress.advance(block.size)
    generator = np.random.default_rng(derive_seed(seed, "unknown items"))
    weights_RG = generator.multinomial(counted.groups, np.full(counted.groups, 1 / counted.groups), replicates)
    events_SN = counted.events_SN
    figures["parts"] = {
        part: {"events": int(events_N.sum()), "unknown_events": int(events_N[unknown_N].sum())}
        for part, events_N in zip(PARTS, events_SN, strict=True)
    }
    figures["segments"] = _segments(store, counted, unknown_N)
    figures["leakage"] = _leakage(store, counted, weights_RG)
    return {**figures, "groups": counted.groups, "replicates": replicates}


# ── the pass ─────────────────────────────────────────────────────────────────────────────────────────────


class _Counts:
    """What is counted block after block; side S is 0 for training events and 1 for held-out ones."""

    def __init__(self, store: EventStore, unknown_N: Bools) -> None:
        self.unknown_N = unknown_N
        self.train_end_U = store.split().train_end_U
        self.lengths_U = np.diff(store.offsets)
        self.activity_U = deciles(self.lengths_U, np.ones(store.num_users, bool))
        self.events_SN = np.zeros((2, store.num_items), np.int64)
        self.first_N = np.full(store.num_items, _NEVER)
        self.by_activity: Ints = np.zeros((_APART, 2, 2), np.int64)
        # side, own, before, next (2 is none), type, organic, played (2 is missing)
        self.shape = (2, 2, 3, 3, len(store.event_types), 3, 3)
        self.groups = max(1, min(_MOST_GROUPS, store.num_users, _MOST_CELLS // int(np.prod(self.shape))))
        self.cells = np.zeros(self.groups * int(np.prod(self.shape)), np.int64)

    def add(self, block: Block, first_user: int) -> None:
        """Count the users from `first_user` on."""
        lengths = np.diff(block.starts, append=block.size)
        users = slice(first_user, first_user + len(lengths))
        train_end = np.minimum(self.train_end_U[users], lengths)
        # Of each user, training events first, then the others.
        side_E = np.repeat(np.tile([False, True], len(lengths)), np.stack([train_end, lengths - train_end], 1).ravel())
        own_E = self.unknown_N[block.columns[schema.ITEM]]
        self._add_items(block, side_E)
        activity_E = np.repeat(self.activity_U[users] * 4, lengths) + (side_E * np.uint8(2) + own_E)
        self.by_activity += np.bincount(activity_E, minlength=4 * _APART).reshape(_APART, 2, 2)
        key_E = np.repeat(np.arange(users.start, users.stop) % self.groups, lengths)
        for size, values_E in zip(self.shape, self._places(block, side_E, own_E), strict=True):
            key_E *= size
            key_E += values_E
        self.cells += np.bincount(key_E, minlength=len(self.cells))

    def _add_items(self, block: Block, side_E: Bools) -> None:
        trained_E = ~side_E
        trained = block.columns[schema.ITEM][trained_E]
        np.add.at(self.events_SN[0], trained, 1)
        np.add.at(self.events_SN[1], block.columns[schema.ITEM][side_E], 1)
        np.minimum.at(self.first_N, trained, block.columns[schema.TIMESTAMP][trained_E].astype(np.int64))

    def _places(self, block: Block, side_E: Bools, own_E: Bools) -> Iterator[np.ndarray]:
        """The place of each event along each axis of `shape`."""
        opens_E = np.zeros(block.size + 1, bool)
        opens_E[block.starts] = opens_E[-1] = True
        before_E = np.full(block.size, _MISSING, np.uint8)
        before_E[1:] = np.where(opens_E[1:-1], _MISSING, own_E[:-1])
        next_E = np.full(block.size, _MISSING, np.uint8)
        next_E[:-1] = np.where(opens_E[1:-1] | (side_E[1:] != side_E[:-1]), _MISSING, own_E[1:])
        yield from (side_E, own_E, before_E, next_E, block.columns[schema.EVENT_TYPE])
        missing_E = np.full(block.size, _MISSING, np.uint8)
        yield block.columns.get(schema.ORGANIC, missing_E)
        played_E = block.columns.get(schema.PLAYED_RATIO)
        if played_E is None:
            yield missing_E
        else:
            yield np.where(played_E == schema.MISSING_PLAYED_RATIO, np.uint8(_MISSING), played_E >= PLAYED_HALF)

    def joint(self, side: int) -> Ints:
        """Events [G, own, before, next, T, organic, played] of a side."""
        counts: Ints = self.cells.reshape(self.groups, *self.shape)[:, side]
        return counts


# ── segments ─────────────────────────────────────────────────────────────────────────────────────────────


def deciles(values: npt.NDArray[np.integer], among: Bools) -> Ints:
    """0 … 9 for values `among` which the deciles are taken, 10 for the others; see the module's docstring."""
    rising = np.sort(values[among])
    if not len(rising):
        return np.full(len(values), _APART)
    # A value has at least m values below it exactly where it exceeds the m-th smallest.
    least = -(-len(rising) * np.arange(1, 10) // 10)
    return np.where(among, np.searchsorted(rising[least - 1], values, side="left"), _APART)


def _segments(store: EventStore, counted: _Counts, unknown_N: Bools) -> dict[str, list[dict[str, Any]]]:
    plays_N, first_N = counted.events_SN[0], counted.first_N
    played_N = plays_N > 0
    rows = {}
    for name, values_N, apart in (("popularity", plays_N, "never played"), ("age", first_N, "not in training")):
        decile_N = deciles(values_N, played_N)
        rows[name] = _item_rows(decile_N, [*_tenths(), apart], counted.events_SN, unknown_N)
        _tell_ranges(rows[name], values_N, decile_N)
    has_artist_N = (np.diff(store.artist_offsets) > 0).astype(np.int64)
    rows["artist"] = _item_rows(has_artist_N, ["no artist", "artist known"], counted.events_SN, unknown_N)
    users = np.bincount(counted.activity_U, minlength=_APART)
    rows["activity"] = [
        _row(segment, "users", int(users[place]), None, counted.by_activity[place])
        for place, segment in enumerate(_tenths())
        if users[place]
    ]
    _tell_ranges(rows["activity"], counted.lengths_U, counted.activity_U)
    return {name: rows[name] for name in SEGMENTS}


def _tenths() -> list[str]:
    return [str(tenth) for tenth in range(1, 11)]


def _item_rows(place_N: Ints, names: list[str], events_SN: Ints, unknown_N: Bools) -> list[dict[str, Any]]:
    key_N = place_N * 2 + unknown_N
    items = np.bincount(key_N, minlength=2 * len(names)).reshape(-1, 2)
    # Sums of whole numbers: exact in float64 up to 2**53 events.
    events = [np.bincount(key_N, weights=events_N, minlength=2 * len(names)).reshape(-1, 2) for events_N in events_SN]
    by_place = np.stack(events, axis=1).astype(np.int64)
    return [
        _row(name, "items", int(items[place].sum()), int(items[place, 1]), by_place[place])
        for place, name in enumerate(names)
        if items[place].any()
    ]


def _row(segment: str, what: str, count: int, unknown: int | None, events_SK: Ints) -> dict[str, Any]:
    """A segment; users have no `unknown_item_share`. Shares are None where there is nothing to share.

    Args:
        events_SK: events by side, on known and on unknown items.
    """
    row: dict[str, Any] = {"segment": segment, what: count}
    if unknown is not None:
        row["unknown_item_share"] = _share(unknown, count)
    for part, (on_known, on_unknown) in zip(PARTS, events_SK.tolist(), strict=True):
        row[f"{part}_events"] = on_known + on_unknown
        row[f"{part}_unknown_share"] = _share(on_unknown, on_known + on_unknown)
    return row


def _tell_ranges(rows: list[dict[str, Any]], values: Ints, place: Ints) -> None:
    """Add the least and the greatest value of each decile: plays, seconds, or events."""
    for row in rows:
        if row["segment"].isdecimal():
            inside = values[place == int(row["segment"]) - 1]
            row["from"], row["to"] = int(inside.min()), int(inside.max())


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# ── leakage ──────────────────────────────────────────────────────────────────────────────────────────────


def _tables(joint: Ints, store: EventStore) -> Iterator[tuple[str, str, Ints]]:
    """Indicator, label, and events [G, 2, 2] by indicator and label, of each pair that the store can answer."""
    for axis, indicator in enumerate(INDICATORS, start=1):

        def by(label_axis: int, indicator_axis: int = axis) -> Ints:
            others = tuple(other for other in range(1, joint.ndim) if other not in (indicator_axis, label_axis))
            counts: Ints = joint.sum(axis=others)[:, :2]
            return counts

        yield indicator, "next unknown", by(3)[:, :, :2]
        types = by(4)
        for index, name in enumerate(store.event_types):
            if len(store.event_types) > 1:
                yield indicator, name, np.stack([types.sum(axis=2) - types[:, :, index], types[:, :, index]], axis=2)
        if store.has_column(schema.ORGANIC):
            yield indicator, "organic", by(5)[:, :, :2]
        if store.has_column(schema.PLAYED_RATIO):
            yield indicator, "played half", by(6)[:, :, :2]


def _leakage(store: EventStore, counted: _Counts, weights_RG: Ints) -> dict[str, list[dict[str, Any]]]:
    tables = {part: list(_tables(counted.joint(side), store)) for side, part in enumerate(PARTS)}
    questions = sum(map(len, tables.values()))
    # Two-sided, each question with its part of CHANCE.
    deviations = NormalDist().inv_cdf(1 - CHANCE / (2 * questions))
    return {part: [_leakage_row(*asked, weights_RG, deviations) for asked in tables[part]] for part in PARTS}


def _leakage_row(indicator: str, label: str, table_G22: Ints, weights_RG: Ints, deviations: float) -> dict[str, Any]:
    """One indicator against one label: shares of the label, AUC and its interval, information, verdict.

    `deviations`: how many standard errors from ½ chance explains.

    Figures are None where indicator or label is the same for all events.
    """
    table = table_G22.sum(axis=0)
    row: dict[str, Any] = {
        "indicator": indicator,
        "label": label,
        "events": int(table.sum()),
        "label_share_unknown": _share(int(table[1, 1]), int(table[1].sum())),
        "label_share_known": _share(int(table[0, 1]), int(table[0].sum())),
    }
    if not table.any(axis=0).all() or not table.any(axis=1).all():
        same = "the label" if not table.any(axis=0).all() else "the flag"
        nothing = dict.fromkeys(("auc", "auc_low", "auc_high", "information_bits", "information_share"))
        return {**row, **nothing, "leaks": False, "verdict": f"{label}: cannot be told, {same} is alike for all events"}
    score = float(auc(table))
    low, high, error = _spread(table_G22, weights_RG)
    bits, share = information(table)
    leaks = abs(score - 0.5) > max(AUC_MARGIN, deviations * error)
    verb = ("predicts" if score > 0.5 else "speaks against") if leaks else "says little of"
    verdict = (
        f"{INDICATORS[indicator]} {verb} {label}: AUC {score:.3f} ({low:.3f}–{high:.3f});"
        f" the flag carries {share:.1%} of the label's entropy"
    )
    figures = {"auc": score, "auc_low": low, "auc_high": high, "information_bits": bits, "information_share": share}
    return {**row, **figures, "leaks": leaks, "verdict": verdict}


def auc(table_x22: npt.NDArray[Any]) -> Floats:
    """Of a yes/no indicator, from events [..., indicator, label]; NaN where a label has no event."""
    totals = table_x22.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        rates = table_x22[..., 1, :] / totals
    return np.asarray((1 + rates[..., 1] - rates[..., 0]) / 2)


def information(table_22: Ints) -> tuple[float, float]:
    """Mutual information of indicator and label in bits, and as a share of the label's entropy, which is above 0."""
    joint = table_22 / table_22.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    held = joint > 0
    label = joint.sum(axis=0)
    bits = max(float((joint[held] * np.log2(joint[held] / apart[held])).sum()), 0.0)  # rounding may give -1e-17
    return bits, bits / float(-(label * np.log2(label)).sum())


def _spread(table_G22: Ints, weights_RG: Ints) -> tuple[float, float, float]:
    """2.5% and 97.5% quantiles of the AUC over resampled groups, and its standard error.

    Replicates that lack a label are left out.
    """
    if table_G22.any(axis=1).sum(axis=0).min() < LEAST_GROUPS:
        return 0.0, 1.0, np.inf
    scores = auc((weights_RG.astype(np.float64) @ table_G22.reshape(-1, 4)).reshape(-1, 2, 2))
    scores = scores[np.isfinite(scores)]
    low, high = np.quantile(scores, (0.025, 0.975))
    return float(low), float(high), float(scores.std())


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────


def format_unknown(figures: dict[str, Any]) -> str:
    """The figures for a terminal: a block a segment, and the verdicts."""
    if not figures["unknown_items"]:
        return "no item is unknown"
    lines = [f"{figures['unknown_items']} of {figures['items']} items are unknown"]
    lines += [
        f"{name.replace('_', '-')} events: {_percent(_share(part['unknown_events'], part['events']))} on unknown items"
        for name, part in figures["parts"].items()
    ]
    for name, rows in figures["segments"].items():
        lines.append(f"{name:<16} {'count':>12} {'unknown items':>14} {'training events':>16} {'held-out events':>16}")
        for row in rows:
            shares = [row.get("unknown_item_share"), *(row[f"{part}_unknown_share"] for part in PARTS)]
            items, training, held_out = map(_percent, shares)
            count = row.get("items", row.get("users"))
            lines.append(f"  {row['segment']:<14} {count:>12,} {items:>14} {training:>16} {held_out:>16}")
    for part, rows in figures["leakage"].items():
        lines.append(f"does it leak, over {part.replace('_', '-')} events")
        lines += [f"  {'LEAKS  ' if row['leaks'] else ''}{row['verdict']}" for row in rows]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"
