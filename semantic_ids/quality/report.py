"""A self-contained HTML page about a code table: how good its codes are, what is unknown, whether it is time to refit.

Every figure has a sentence beneath it that says how to read it, for somebody who has not met semantic ids before. What
a table has no figures for is said in a sentence too.

V codes per level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from common.charts import Series, bar_chart, line_chart
from common.html_page import cards, figure, heading, note, side_by_side, table
from common.html_page import page as frame
from common.progress import format_count
from semantic_ids.quality.unknown import PARTS, PLAYED_HALF

Figures = Mapping[str, Any]

_PERCENT = 100.0
_NONE = "–"
_FLAGS = {"own": "its own item", "before": "the item before it"}
_SIDES = {"training": "training events", "held_out": "held-out events"}


def page(title: str, figures: Figures) -> str:
    """The page as text.

    Args:
        figures: the fields of a code table's manifest, of which `counts` (`items`, `known`), `codes` and `diagnostics`
            (as `diagnostics.diagnose` returns) are needed, and others are told where they are given. Beside these
            fields, or within `diagnostics`, may stand: `neighbour_overlap` (a share, or a dict with `overlap`,
            `queries`, `database` and `k`), `usage` (of `diagnostics.usage_curves`), `unknown` (of
            `unknown.unknown_figures`), `drift` and `refit` (rows of label, value, threshold, verdict).
    """
    diagnostics = figures["diagnostics"]
    return frame(
        title,
        [
            heading(title, level=1),
            _introduction(figures),
            _cards(figures),
            heading("What stands out"),
            _findings(diagnostics),
            heading("How codes are used"),
            side_by_side([_evenness_chart(diagnostics, figures["codes"]), _usage_chart(figures)]),
            heading("What codes keep of the vectors"),
            side_by_side([_error_chart(diagnostics), _neighbours(figures)]),
            heading("How codes tell items apart"),
            side_by_side([_prefix_chart(diagnostics), _group_chart(diagnostics)]),
            heading("Level by level"),
            _level_table(diagnostics, figures["codes"]),
            heading("Unknown items"),
            *_unknown_sections(figures),
            *_rows_section("Drift: do new items still fit?", _given(figures, "drift")),
            *_rows_section("Refit: what changed against the table before", _given(figures, "refit")),
        ],
    )


def _given(figures: Figures, key: str) -> Any:
    """A figure that stands beside the manifest's fields or within its diagnostics; None where it is not given."""
    return figures.get(key, figures["diagnostics"].get(key))


def _introduction(figures: Figures) -> str:
    levels, codes = len(figures["diagnostics"]["levels"]), figures["codes"]
    facts = [
        f"{name} {figures[key]}"
        for key, name in (
            ("quantizer", "quantiser"),
            ("embeddings", "item vectors:"),
            ("dimensions", "numbers a vector:"),
            ("fingerprint", "code table"),
            ("store_fingerprint", "event store"),
        )
        if figures.get(key) is not None
    ]
    return note(
        f"A semantic id is a tuple of {levels} codes, each one of {codes:,}, that is read from left to right: the first"
        " code says roughly what an item is like, each further one refines it, so items alike begin alike. A model"
        " predicts an item by predicting its codes one after another. Codes are good if all of them are used evenly,"
        " if little of an item's vector is lost, and if few items share a tuple."
    ) + (note(f"Of this table: {'; '.join(facts)}.") if facts else "")


def _cards(figures: Figures) -> str:
    counts, diagnostics = figures["counts"], figures["diagnostics"]
    last = diagnostics["levels"][-1]
    held_out = last.get("relative_error_held_out")
    overlap = _overlap(figures)[0]
    kept = [] if overlap is None else [("of neighbours are kept", _percent(overlap))]
    return cards(
        [
            ("items in the catalogue", format_count(counts["items"])),
            ("items with codes", format_count(counts["known"])),
            ("distinct tuples", format_count(diagnostics["unique_tuples"])),
            ("of items share a tuple", _percent(diagnostics["collision_rate"])),
            (
                "squared error left, of the fit" if held_out is None else "squared error left, held out",
                _percent(last["relative_error"] if held_out is None else held_out),
            ),
            *kept,
        ]
    )


def _findings(diagnostics: Figures) -> str:
    if not diagnostics["findings"]:
        return note(
            "Nothing: no middle level is much narrower than both ends (an hourglass), and the codebooks look neither"
            " too small nor too large."
        )
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in diagnostics["findings"])


# ── codes ────────────────────────────────────────────────────────────────────────────────────────────────


def _evenness_chart(diagnostics: Figures, codes: int) -> str:
    levels = diagnostics["levels"]
    bars = {
        "codes in use": [row["utilisation"] for row in levels],
        "entropy, of its most": [row["entropy_bits"] / np.log2(codes) for row in levels],
        "Gini coefficient": [row["gini"] for row in levels],
    }
    return figure(
        bar_chart([str(level) for level in range(1, len(levels) + 1)], bars, "level", "share"),
        "Codes in use: those that some item carries. Entropy is 1 if all codes are used alike; the Gini coefficient is"
        " then 0, and near 1 if a few codes hold nearly all items. A middle level with low entropy between higher ones"
        " is an hourglass: most items pass through few codes.",
    )


def _usage_chart(figures: Figures) -> str:
    usage, codes = _given(figures, "usage"), figures["codes"]
    if usage is None:
        return note("How often each code is used was not counted for this table.")
    series = [
        Series(f"level {level}", usage["ranks"], [_PERCENT * share for share in shares])
        for level, shares in enumerate(usage["shares"], start=1)
    ]
    # The axis ends at V, not at the power of ten after it.
    powers = [10**power for power in range(int(np.log10(codes)) + 1)]
    ticks = [(rank, f"{rank:,}") for rank in (*(power for power in powers if 2 * power < codes), codes)]
    return figure(
        line_chart(series, "place of the code", "% of items", log_x=True, log_y=True, x_ticks=ticks),
        "Share of items on the most used code of a level, on the second, and so on; both axes are logarithmic. Used"
        f" alike, every code would hold {_PERCENT / codes:.2g}% and the line be flat; a line that falls"
        " early leaves its last codes to few items, one that ends early has codes that no item carries.",
    )


def _error_chart(diagnostics: Figures) -> str:
    rows = diagnostics["levels"]
    places = list(range(len(rows) + 1))
    series = [Series("vectors of the fit", places, [1.0, *(row["relative_error"] for row in rows)])]
    if all("relative_error_held_out" in row for row in rows):
        held_out = [1.0, *(row["relative_error_held_out"] for row in rows)]
        series.append(Series("vectors held out of the fit", places, held_out))
        apart = " Where the lines part, codebooks remember the sample that they were fitted to."
    else:
        apart = " No vectors were held out of the fit, so how the codes suit unseen items is not told."
    return figure(
        line_chart(series, "levels read", "squared error left, of all", log_y=True, x_ticks=_ticks(places)),
        "How much of the vectors is still missing if they are put together from the first codes alone; 1 is"
        f" everything. Each level should take away a good part of what the one before left.{apart}",
    )


def _ticks(places: Sequence[int]) -> list[tuple[float, str]]:
    """There is no half a level."""
    return [(place, str(place)) for place in places]


def _neighbours(figures: Figures) -> str:
    overlap, settings = _overlap(figures)
    if overlap is None:
        return note("Whether items keep their nearest neighbours was not measured for this table.")
    count = settings.get("k", 10)
    measured = ""
    if {"queries", "database"} <= settings.keys():
        measured = f" Measured for {settings['queries']:,} items among {settings['database']:,} of the catalogue."
    bars = {"kept": [_PERCENT * overlap], "lost": [_PERCENT * (1 - overlap)]}
    return figure(
        bar_chart([f"{count} nearest items"], bars, "", "%"),
        f"Of the {count} items nearest to an item by its vector, how many are still among its {count} nearest once"
        f" all vectors are put together from codes: {_percent(overlap)}.{measured}",
    )


def _overlap(figures: Figures) -> tuple[float | None, Mapping[str, Any]]:
    given = _given(figures, "neighbour_overlap")
    if isinstance(given, Mapping):
        return float(given["overlap"]), given
    return (None if given is None else float(given)), {}


def _prefix_chart(diagnostics: Figures) -> str:
    rows = diagnostics["levels"]
    places = list(range(len(rows) + 1))
    series = [
        Series("distinct beginnings", places, [1, *(row["unique_prefixes"] for row in rows)]),
        Series("items with codes", [0, len(rows)], [diagnostics["known"]] * 2),
    ]
    return figure(
        line_chart(series, "levels read", "distinct beginnings of tuples", log_y=True, x_ticks=_ticks(places)),
        "Into how many groups the first codes divide the catalogue. Where the line meets that of the items, each has"
        " a tuple of its own; levels after that only refine vectors.",
    )


def _group_chart(diagnostics: Figures) -> str:
    bins = diagnostics["group_histogram"]
    if not bins:
        return note("No item has codes, so none share a tuple.")
    totals = {key: sum(row[key] for row in bins) for key in ("tuples", "items")}
    bars = {f"of {key}": [_PERCENT * row[key] / total for row in bins] for key, total in totals.items()}
    labels = [f"{row['from']}" if row["from"] == row["to"] else f"{row['from']}–{row['to']}" for row in bins]
    return figure(
        bar_chart(labels, bars, "items that share one tuple", "%"),
        f"How many items share a tuple; the largest group has {diagnostics['largest_group']:,}. Codes alone cannot tell"
        " items of a group apart: they are then offered in the order of their plays.",
    )


def _level_table(diagnostics: Figures, codes: int) -> str:
    rows = diagnostics["levels"]
    held_out = any("relative_error_held_out" in row for row in rows)
    head = ["level", "in use", "dead codes", f"entropy of {np.log2(codes):.2f} bits", "Gini", "deviation, of the mean"]
    head += ["on the top 1%", "beginnings", "error left", "of level before"]
    lines = []
    for level, row in enumerate(rows, start=1):
        cells = [str(level), _percent(row["utilisation"]), f"{row['dead_codes']:,}", f"{row['entropy_bits']:.2f}"]
        cells += [f"{row['gini']:.3f}", f"{row['count_deviation_relative']:.2f}", _percent(row["top_1_percent_share"])]
        cells += [f"{row['unique_prefixes']:,}", f"{row['relative_error']:.4f}", _percent(row["error_decay"])]
        lines.append(cells + ([f"{row['relative_error_held_out']:.4f}"] if held_out else []))
    return table([*head, *(["held out"] if held_out else [])], lines) + note(
        "Deviation: standard deviation of the number of items a code has, over its mean; 0 if all have as many. On the"
        " top 1%: share of the items that the most used hundredth of the codes hold."
    )


# ── unknown items ────────────────────────────────────────────────────────────────────────────────────────


def _unknown_sections(figures: Figures) -> list[str]:
    counts, unknown = figures["counts"], _given(figures, "unknown")
    missing = counts["items"] - counts["known"]
    if not missing:
        return [note("Every item of the catalogue has codes: none is unknown.")]
    said = (
        f"{missing:,} of {counts['items']:,} items ({_percent(missing / counts['items'])}) had no vector to be coded"
        " from. They share the all-zero tuple, which means unknown: a model sees that something was played, not what,"
        " and cannot recommend them by codes."
    )
    if unknown is None or not unknown["segments"]:
        return [note(f"{said} Where they are was not counted for this table.")]
    for part, name in _SIDES.items():
        events = unknown["parts"][part]
        if events["events"]:
            said += f" Of {name}, {_percent(events['unknown_events'] / events['events'])} are on unknown items."
    segments = unknown["segments"]
    charts = [
        _segment_chart(segments["popularity"], "popularity decile of items", "never played", _POPULARITY),
        _segment_chart(segments["age"], "age decile of items", "not in training", _AGE),
        _segment_chart(segments["artist"], "artist", "", "Whether the catalogue names an artist of the item."),
        _segment_chart(segments["activity"], "activity decile of users", "", _ACTIVITY),
    ]
    return [note(said), side_by_side(charts[:2]), side_by_side(charts[2:]), *_leakage_sections(unknown)]


_POPULARITY = (
    "Items by training plays, 10 the most played; “none” are those that training never plays. An unknown item costs"
    " most where most events are."
)
_AGE = "Items by the time of their first training event, 10 the newest; “none” are those that training never plays."
_ACTIVITY = "Users by their number of events, 10 the most active."


def _segment_chart(rows: Sequence[Figures], x_label: str, apart: str, caption: str) -> str:
    kinds = {"of items": "unknown_item_share"} if "items" in rows[0] else {}
    kinds |= {f"of {name}": f"{part}_unknown_share" for part, name in _SIDES.items()}
    bars = {name: [_PERCENT * (row[key] or 0.0) for row in rows] for name, key in kinds.items()}
    labels = ["none" if row["segment"] == apart else row["segment"] for row in rows]
    return figure(bar_chart(labels, bars, x_label, "% unknown"), caption)


def _leakage_sections(unknown: Figures) -> list[str]:
    leakage = unknown["leakage"]
    if not any(leakage.values()):
        return [note("The store has no labels against which being unknown could be held.")]
    leaks = [(part, row) for part in PARTS for row in leakage[part] if row["leaks"]]
    told = "".join(f"<p>{escape(_SIDES[part].capitalize())}: {escape(row['verdict'])}.</p>" for part, row in leaks)
    clean = note("No label is given away: no AUC is further from 0.5 than the threshold and beyond chance.")
    return [
        heading("Does being unknown give something away?"),
        note(
            "If the mere fact that an item is unknown predicts a label, a model learns the gaps of the catalogue"
            " instead of taste. For an event, the flag says that its own item, or the item before it in the same"
            " history, is unknown. AUC 0.5: the flag tells nothing; 0 or 1: everything. Intervals are from a bootstrap"
            f" over {unknown['groups']:,} groups of users. A flag leaks if its AUC is more than"
            f" {unknown['margin']} from 0.5, and further than chance explains over all questions together."
        ),
        told or clean,
        *(_leakage_table(name, leakage[part]) for part, name in _SIDES.items()),
    ]


def _leakage_table(name: str, rows: Sequence[Figures]) -> str:
    head = ["label", "unknown is", "label if unknown", "if known", "AUC", "95% interval", "of entropy", "verdict"]
    lines = []
    for row in rows:
        cells = [_label(row["label"]), _FLAGS[row["indicator"]]]
        cells += [_percent(row["label_share_unknown"]), _percent(row["label_share_known"])]
        if row["auc"] is None:
            lines.append([*cells, _NONE, _NONE, _NONE, "cannot be told"])
            continue
        interval = f"{row['auc_low']:.3f}–{row['auc_high']:.3f}"
        cells += [f"{row['auc']:.3f}", interval, _percent(row["information_share"])]
        lines.append([*cells, "leaks" if row["leaks"] else "no leak"])
    return heading(f"Over {name}", level=3) + table(head, lines)


def _label(name: str) -> str:
    return {"next unknown": "next item unknown", "played half": f"played {PLAYED_HALF}% or more"}.get(name, name)


# ── drift and refit ──────────────────────────────────────────────────────────────────────────────────────


def _rows_section(title: str, rows: Sequence[Sequence[Any]] | None) -> list[str]:
    """A section of (label, value, threshold, verdict) rows; nothing where there are none.

    A row without value and threshold is a sentence, and stands above the table, where it has room to wrap.
    """
    if not rows:
        return []
    sentences = [f"<p>{escape(_told(row[0], row[3]))}</p>" for row in rows if row[1] == row[2] == ""]
    lines = [[_cell(cell) for cell in row] for row in rows if not row[1] == row[2] == ""]
    return [heading(title), *sentences, table(["", "value", "threshold", "verdict"], lines)]


def _told(label: str, verdict: str) -> str:
    return f"{label[:1].upper()}{label[1:]}: {verdict}"


def _cell(value: Any) -> str:
    if value is None:
        return _NONE
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _percent(share: float | None) -> str:
    """A percentage; what is there, but less than 0.01%, is not called nothing."""
    if share is None:
        return _NONE
    return "<0.01%" if 0 < share < 0.0001 else f"{share:.2%}" if share < 0.1 else f"{share:.1%}"
