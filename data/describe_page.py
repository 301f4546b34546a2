"""A self-contained HTML page about an event store: its tables, and charts where a picture says more."""

from __future__ import annotations

import math

from common.charts import Series, bar_chart, histogram, line_chart
from common.html_page import cards, figure, heading, note, page, side_by_side, table
from common.progress import format_count
from data.describe_tables import Table, is_dated, moment, share, unit_of
from data.manifest import Manifest
from data.statistics_blocks import DAY, HOUR
from data.statistics_results import Bins, Statistics

_TIMES = (
    (1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"), (HOUR, "1 h"), (6 * HOUR, "6 h"), (DAY, "1 d"),
    (7 * DAY, "7 d"), (30 * DAY, "30 d"), (365 * DAY, "1 y"), (3650 * DAY, "10 y"),
)  # fmt: skip
_PERCENT = 100.0


def render_page(name: str, manifest: Manifest, figures: Statistics, tables: dict[str, Table]) -> str:
    """The page as text; `name` heads it, and `tables` are those of `make_tables`."""
    timeline = figures.timeline
    return page(
        name,
        [
            heading(name, level=1),
            note(f"Event store of {' '.join(manifest.source.values())}, fingerprint {manifest.fingerprint}."),
            _cards(manifest, figures),
            side_by_side([_titled(tables["content"]), _titled(tables["split"])]),
            heading("Histories"),
            side_by_side([_lengths_chart(figures), _padding_chart(figures)]),
            _titled(tables["lengths"]),
            _titled(tables["padding"]),
            heading("Over time"),
            side_by_side(
                [
                    _time_chart(manifest, figures, timeline.events, "events"),
                    _time_chart(manifest, figures, timeline.users, "active users"),
                ]
            ),
            _titled(tables["timeline"]),
            heading("Gaps and sessions"),
            side_by_side([_gaps_chart(figures), _titled(tables["gaps"])]),
            heading("Popularity"),
            side_by_side([_rank_chart(figures), _titled(tables["popularity"])]),
            heading("What is known"),
            side_by_side([_artists_chart(figures), _titled(tables["coverage"])]),
            side_by_side([_played_chart(figures.plays.played), _titled(tables["plays"])]),
        ],
    )


def _titled(content: Table) -> str:
    title = content.title[0].upper() + content.title[1:]
    return f"<div>{heading(title, level=3)}{table(content.head, content.rows)}</div>"


def _cards(manifest: Manifest, figures: Statistics) -> str:
    counts = manifest.counts
    return cards(
        [
            ("events", format_count(counts["events"])),
            ("users", format_count(counts["users"])),
            ("items", format_count(counts["items"])),
            ("events of the median user", f"{figures.lengths.median:,.0f}"),
            ("of events are repeats", share(figures.repeats, counts["events"])),
        ]
    )


def _lengths_chart(figures: Statistics) -> str:
    bins = figures.lengths.bins
    return figure(
        histogram(bins.edges, bins.counts, "events a user", "users", log_x=True, titles=_ranges(bins, "users")),
        "How long histories are. The axis is logarithmic: to the right, bars span more lengths.",
    )


def _padding_chart(figures: Statistics) -> str:
    padding = figures.lengths.padding
    bars = {
        "events": [row.sparsity for row in padding],
        "pairs of events": [row.sparsity_squared for row in padding],
    }
    return figure(
        bar_chart(
            [f"{row.length:,}" for row in padding], bars, "length that histories are padded to", "share left empty"
        ),
        "What a dense layout would waste: places for events, and for the pairs of events that attention compares. "
        "Histories longer than the length are cut to it.",
    )


def _time_chart(manifest: Manifest, figures: Statistics, counts: list[int], what: str) -> str:
    timeline, dated = figures.timeline, is_dated(manifest)
    edges = [timeline.start + index * timeline.width for index in range(len(counts) + 1)]
    titles = [
        f"{moment(edge, dated, timeline.width)}: {count:,} {what}" for edge, count in zip(edges, counts, strict=False)
    ]
    unit = "hour" if timeline.width == HOUR else "day"
    x_label = "date" if dated else f"{unit} since the origin of the source"
    ticks = _dates(edges, timeline.width) if dated else _counted(edges, HOUR if timeline.width == HOUR else DAY)
    per = unit_of(timeline.width)
    return figure(
        histogram(edges, counts, x_label, f"{what} per {per}", x_ticks=ticks, titles=titles),
        f"Events in each {per}." if what == "events" else f"Users with an event in the {per}.",
    )


def _dates(edges: list[int], width: int) -> list[tuple[float, str]]:
    """About five dates, at beginnings of bins."""
    every = math.ceil(len(edges) / 5)
    return [(edge, moment(edge, True, max(width, DAY))) for edge in edges[::every]]


def _counted(edges: list[int], unit: int) -> list[tuple[float, str]]:
    """About six round numbers of days or hours."""
    first, last = edges[0] // unit, edges[-1] // unit
    raw = max((last - first) / 6, 1)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    return [(number * unit, f"{number:,}") for number in range(-(-first // step) * step, last + 1, step)]


def _gaps_chart(figures: Statistics) -> str:
    gaps = figures.gaps
    if not gaps.bins.counts:
        return note("No two events of a user are more than 0 seconds apart.")
    heights = [_PERCENT * count / gaps.total for count in gaps.bins.counts]
    titles = [
        f"{_duration(low)} to {_duration(high)}: {height:.3g}%"
        for low, high, height in zip(gaps.bins.edges, gaps.bins.edges[1:], heights, strict=False)
    ]
    return figure(
        histogram(
            gaps.bins.edges, heights, "time to the next event", "% of gaps", log_x=True, x_ticks=_TIMES, titles=titles
        ),
        "How long a user waits between two events; each bar spans twice the time of the one before it. Gaps of 0 "
        f"seconds, {share(gaps.ties, gaps.total)}, have no place on a logarithmic axis.",
    )


def _duration(seconds: int) -> str:
    for size, unit in ((DAY, "d"), (HOUR, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds} s"


def _rank_chart(figures: Statistics) -> str:
    popularity = figures.popularity
    series = [Series("items", popularity.ranks, popularity.events_at_rank)]
    return figure(
        line_chart(series, "place of the item", "events", log_x=True, log_y=True),
        "Events of the most popular item, of the second, and so on; both axes are logarithmic, where a power law is "
        "a straight line.",
    )


def _artists_chart(figures: Statistics) -> str:
    totals = sum(row.items for row in figures.by_artists), sum(row.events for row in figures.by_artists)
    bars = {
        "of items": [_PERCENT * row.items / totals[0] for row in figures.by_artists],
        "of events": [_PERCENT * row.events / totals[1] for row in figures.by_artists],
    }
    most = len(figures.by_artists) - 1
    labels = ["none", *map(str, range(1, most)), f"{most} or more"]
    return figure(
        bar_chart(labels, bars, "artists of an item", "%"),
        "How many artists an item has: counted once an item, and once an event.",
    )


def _played_chart(played: Bins | None) -> str:
    if played is None:
        return note("The source of this store does not say how much of an item was played.")
    labels = [str(edge) for edge in played.edges[:-2]] + ["200+"]
    total = sum(played.counts) or 1
    bars = {"of events": [_PERCENT * count / total for count in played.counts]}
    return figure(
        bar_chart(labels, bars, "percent of the item played, in tens", "%"),
        "How much was played, where it is known; the bar of 100 is 100 to 109, the last all from 200 on. Rewinding "
        "exceeds 100.",
    )


def _ranges(bins: Bins, what: str) -> list[str]:
    return [
        f"{f'{low:,}' if high == low + 1 else f'{low:,}–{high - 1:,}'}: {count:,} {what}"
        for low, high, count in zip(bins.edges, bins.edges[1:], bins.counts, strict=False)
    ]
