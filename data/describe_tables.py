"""The figures of a store as small tables, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from data import schema
from data.manifest import Manifest
from data.sources import movielens
from data.statistics_blocks import DAY, HOUR
from data.statistics_results import MOST_GROUPS, PADDED_TO, QUANTILES, Coverage, Lengths, Part, Statistics

Rows = list[tuple[str, ...]]

NONE = "–"
"""Stands where a store has nothing of the kind."""


@dataclass(frozen=True)
class Table:
    """A title, names of the columns, and rows of text; where no column has a name, `head` is empty."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_text(self) -> str:
        """For a terminal: first column to the left, the others to the right."""
        lines = [self.head, *self.rows] if self.head else list(self.rows)
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        text = [self.title]
        for line in lines:
            cells = [line[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            text.append(f"  {'   '.join(cells)}".rstrip())
        return "\n".join(text)


def make_tables(manifest: Manifest, figures: Statistics) -> dict[str, Table]:
    """All tables of a store by topic, in the order in which they are read."""
    events = manifest.counts["events"]
    return {
        "content": Table("what is in it", (), _content(manifest)),
        "split": Table(f"split: {manifest.split['kind']}", ("", "users", "events", ""), _split(figures.split, events)),
        "lengths": Table("events a user: quantiles over users", *_lengths(figures.lengths)),
        "padding": Table("left empty where histories are padded", *_padding(figures.lengths)),
        "timeline": Table(
            f"over time, {unit_of(figures.timeline.width)} by {unit_of(figures.timeline.width)}",
            ("", "mean", "fewest", "most", "on"),
            _timeline(manifest, figures),
        ),
        "gaps": Table("between successive events of a user", (), _gaps(manifest, figures)),
        "popularity": Table("how unevenly events fall on items", (), _popularity(manifest, figures)),
        "coverage": Table("what is known of items", ("", "items", "", "events", ""), _coverage(manifest, figures)),
        "plays": Table("what is known of events", ("", "events", ""), _plays(manifest, figures)),
    }


# ── words for numbers ────────────────────────────────────────────────────────────────────────────────────


def share(part: float, whole: float) -> str:
    """A percentage; what is there, but less than 0.01%, is not called nothing."""
    if whole == 0:
        return NONE
    ratio = part / whole
    return "<0.01%" if 0 < ratio < 0.0001 else f"{ratio:.2%}"


def is_dated(manifest: Manifest) -> bool:
    """Whether timestamps count from 1970, so that they are dates; other sources do not tell their origin."""
    return manifest.source["name"] == movielens.NAME


def moment(seconds: int, dated: bool, width: int) -> str:
    """The beginning of a bin of `width` seconds in words: a date, or counted from the origin where there are none."""
    if dated:
        when = datetime.fromtimestamp(seconds, tz=UTC)
        return when.date().isoformat() if width >= DAY else when.strftime("%Y-%m-%d %H:%M")
    return f"day {seconds // DAY:,}" if width >= DAY else f"hour {seconds // HOUR:,}"


def unit_of(width: int) -> str:
    """What a bin of a timeline is called."""
    if width == HOUR:
        return "hour"
    return "day" if width == DAY else f"{width // DAY} days"


# ── the tables' rows ─────────────────────────────────────────────────────────────────────────────────────


def _content(manifest: Manifest) -> Rows:
    events = manifest.counts["events"]
    rows: Rows = [(name, f"{count:,}", "") for name, count in manifest.counts.items()]
    rows += [
        (f"· {name}", f"{count:,}", share(count, events))
        for name, count in zip(manifest.event_types, manifest.event_type_counts, strict=True)
    ]
    rows += [
        (f"· {name}", f"{series['values']:,} values", f"{series['days']} days" if "days" in series else "")
        for name, series in manifest.series.items()
    ]
    for name, second in zip(("first event", "last event"), manifest.time_range, strict=True):
        rows.append((name, moment(second, True, HOUR) if is_dated(manifest) else f"{second:,} s", ""))
    rows.append(("days between", f"{(manifest.time_range[1] - manifest.time_range[0]) / DAY:,.1f}", ""))
    found, rule = manifest.duplicates["found"], manifest.duplicates["rule"]
    rows.append((f"duplicates found ({rule})", f"{found:,}", ""))
    rows.append(("fingerprint", manifest.fingerprint, ""))
    return rows


def _split(parts: dict[str, Part], events: int) -> Rows:
    return [
        (name, f"{part.users:,}" if part.users else NONE, f"{part.events:,}", share(part.events, events))
        for name, part in parts.items()
    ]


def _lengths(lengths: Lengths) -> tuple[list[str], list[list[str]]]:
    names = ["", "fewest", *(f"{quantile:.0%}" for quantile in QUANTILES), "most", "mean"]
    values = [lengths.shortest, *lengths.quantiles, lengths.longest, lengths.mean]
    return names, [["events", *(f"{value:,.0f}" if value >= 100 else f"{value:,.3g}" for value in values)]]


def _padding(lengths: Lengths) -> tuple[list[str], list[list[str]]]:
    names = ["padded to", *(f"{length:,}" for length in PADDED_TO)]
    events = ["of the events", *(share(padding.sparsity, 1) for padding in lengths.padding)]
    pairs = ["of pairs of events", *(share(padding.sparsity_squared, 1) for padding in lengths.padding)]
    return names, [events, pairs]


def _timeline(manifest: Manifest, figures: Statistics) -> Rows:
    timeline, rows = figures.timeline, Rows()
    for name, counts in (("events", timeline.events), ("active users", timeline.users)):
        busiest = max(range(len(counts)), key=counts.__getitem__)
        when = moment(timeline.start + busiest * timeline.width, is_dated(manifest), timeline.width)
        rows.append((name, f"{sum(counts) / len(counts):,.1f}", f"{min(counts):,}", f"{counts[busiest]:,}", when))
    return rows


def _gaps(manifest: Manifest, figures: Statistics) -> Rows:
    gaps = figures.gaps
    ends = gaps.sessions - manifest.counts["users"]
    return [
        ("gaps", f"{gaps.total:,}", ""),
        ("of 0 s: events in the same second", f"{gaps.ties:,}", share(gaps.ties, gaps.total)),
        ("over 30 min: a session ends", f"{ends:,}", share(ends, gaps.total)),
        ("sessions", f"{gaps.sessions:,}", ""),
        ("sessions a user", f"{gaps.sessions / manifest.counts['users']:,.2f}", ""),
        ("events a session", f"{gaps.events_per_session:,.2f}", ""),
    ]


def _popularity(manifest: Manifest, figures: Statistics) -> Rows:
    popularity, items = figures.popularity, manifest.counts["items"]
    silent, once = popularity.items_without_event, popularity.items_with_one_event
    return [
        ("events on the 1% most popular items", f"{popularity.top_1_percent:.2%}", ""),
        ("events on the 10% most popular items", f"{popularity.top_10_percent:.2%}", ""),
        ("Gini coefficient of items", f"{popularity.gini:.3f}", ""),
        (
            "Gini coefficient of artists",
            NONE if popularity.artist_gini is None else f"{popularity.artist_gini:.3f}",
            "",
        ),
        ("items without an event", f"{silent:,}", share(silent, items)),
        ("items with one event", f"{once:,}", share(once, items)),
        (
            "repeats: the user had the item before",
            f"{figures.repeats:,}",
            share(figures.repeats, manifest.counts["events"]),
        ),
    ]


def _coverage(manifest: Manifest, figures: Statistics) -> Rows:
    items, events = manifest.counts["items"], manifest.counts["events"]

    def row(name: str, coverage: Coverage | None) -> tuple[str, ...]:
        if coverage is None:
            return (name, "all", share(1, 1), "all", share(1, 1))
        part = share(coverage.items, items), f"{coverage.events:,}", share(coverage.events, events)
        return (name, f"{coverage.items:,}", *part)

    rows = [row("without an embedding", figures.without_embedding), row("without an album", figures.without_album)]
    for count, coverage in enumerate(figures.by_artists):
        rows.append(row(_artists_name(count), coverage))
    return rows


def _artists_name(count: int) -> str:
    """What items with so many artists are called."""
    if count == MOST_GROUPS:
        return f"{count} artists or more"
    return {0: "without an artist", 1: "1 artist"}.get(count, f"{count} artists")


def _plays(manifest: Manifest, figures: Statistics) -> Rows:
    events, plays = manifest.counts["events"], figures.plays
    rows = Rows()
    for name, said in (
        (schema.DURATION, "duration"),
        (schema.ORGANIC, "origin"),
        (schema.PLAYED_RATIO, "played ratio"),
    ):
        absent = plays.missing.get(name, events)
        rows.append((f"without {said}", f"{absent:,}", share(absent, events)))
    if plays.organic is not None:
        known = events - plays.missing[schema.ORGANIC]
        rows.append(("organic, of those known", f"{plays.organic:,}", share(plays.organic, known)))
    if plays.played is not None:
        known = events - plays.missing[schema.PLAYED_RATIO]
        half = sum(plays.played.counts[5:])
        rows.append(("half played or more, of those known", f"{half:,}", share(half, known)))
    return rows
