"""A plan as a page: what every rank holds, what travels, what a step waits for. Drawn from what plan.json holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from common import html_page
from sharding.planning.memory import KINDS, MEMORIES
from sharding.planning.report import size
from sharding.planning.traffic import PARTS, STAGES, duration

_WIDTH = 1000
_NARROWEST = 900
_BAR = 15
_MOST_RANKS, _MOST_ALONE, _MOST_BARS = 64, 16, 64
"""More ranks are drawn as nodes; of more bars neighbours alike are one; and of what is left the fullest are shown."""

_KIND_COLOURS = {
    "tables": "var(--c0)",
    "sparse_optimizer": "var(--c1)",
    "map": "var(--c5)",
    "cache": "var(--c3)",
    "dense_parameters": "var(--c4)",
    "dense_gradients": "var(--c6)",
    "dense_optimizer": "var(--c7)",
    "working": "var(--c2)",
    "reserved": "var(--line)",
}

Plan = Mapping[str, Any]
"""What `Survey.to_plain` gives and plan.json holds."""


def plan_page(plan: Plan, mends: Sequence[str] = ()) -> str:
    """The whole page."""
    title = html_page.heading("Where everything lies", 1)
    return html_page.page(f"Plan for {plan['topology']}", [title, *plan_sections(plan, mends)])


def plan_sections(plan: Plan, mends: Sequence[str] = ()) -> list[str]:
    """The page's parts, for a page that has others besides."""
    return [
        html_page.note(plan["cluster"]),
        html_page.cards(_cards(plan)),
        _verdict(plan, mends),
        *_memory(plan),
        *_traffic(plan),
        *_times(plan),
        html_page.heading("Tables", 3),
        _tables(plan),
    ]


def _cards(plan: Plan) -> list[tuple[str, str]]:
    memory = plan["main_memory"]
    rank = min(plan["ranks"], key=lambda one: one["headroom_bytes"])
    sent = sum(_sum(one["bytes"][stage]) for one in plan["traffic"] for stage in STAGES) / plan["num_ranks"]
    left = rank["headroom_bytes"]
    return [
        ("of tables", size(sum(table["bytes"] for table in plan["tables"]))),
        (f"on the fullest rank, of {size(rank[memory]['capacity'])}", size(rank[f"{memory}_bytes"])),
        ("left there" if left >= 0 else "missing there", size(abs(left))),
        ("sent by a rank in a step", size(sent)),
        ("a step, by arithmetic", duration(sum(plan["seconds_of_parts"].values()))),
    ]


def _verdict(plan: Plan, mends: Sequence[str]) -> str:
    if plan["fits"]:
        return html_page.note(f"It fits. {_bottleneck(plan)}")
    missing = "; ".join(
        f"{MEMORIES[one['memory']]} of rank {one['rank']} is short of {size(one['bytes'])}" for one in plan["missing"]
    )
    told = f"<p><b>It does not fit:</b> {escape(missing)}."
    if not mends:
        return f"{told}</p>"
    listed = "".join(f"<li>{escape(mend)}</li>" for mend in mends)
    return f"{told} Any one of these would make it fit:</p><ul>{listed}</ul>"


def _bottleneck(plan: Plan) -> str:
    """Without the marks that set names apart on a terminal."""
    return str(plan["bottleneck"]).replace("`", "")


def _memory(plan: Plan) -> list[str]:
    """A bar a rank (or a node, by its fullest rank), cut by kind, against what there is."""
    parts = []
    for memory, name in MEMORIES.items():
        if not any(rank[memory]["kinds"] for rank in plan["ranks"]):
            continue
        rows, unit = _chosen(plan["ranks"], memory)
        kinds = [kind for kind in KINDS if any(kind in rank[memory]["kinds"] for rank in plan["ranks"])]
        colours = {kind: _KIND_COLOURS[kind] for kind in kinds}
        caption = (
            f"One bar a {unit}; the outlined end is free, and what stands beyond the thick line does not fit. Point at "
            f"a part to read it."
        )
        parts.append(html_page.heading(f"{name[0].upper()}{name[1:]}, {unit.split(',')[0]} by {unit.split(',')[0]}", 3))
        legend = _legend({KINDS[kind]: colours[kind] for kind in kinds})
        parts.append(html_page.figure(legend + _memory_map(rows, memory, colours), caption))
    return parts


def _chosen(ranks: Sequence[Plan], memory: str) -> tuple[list[tuple[str, Plan]], str]:
    """What is drawn, and what one bar is: ranks, or nodes by their fullest ranks; of many, neighbours alike as one."""
    unit, found = "rank", [(rank["rank"], rank) for rank in ranks]
    if len(ranks) > _MOST_RANKS:
        fullest: dict[int, Plan] = {}
        for rank in ranks:
            other = fullest.get(rank["node"])
            if other is None or _room(rank, memory) < _room(other, memory):
                fullest[rank["node"]] = rank
        unit, found = "node", list(fullest.items())
    runs = [(first, first, rank) for first, rank in found]
    if len(runs) > _MOST_ALONE:
        runs = []
        for number, rank in found:
            if runs and _looks(runs[-1][2], memory) == _looks(rank, memory):
                runs[-1] = (runs[-1][0], number, runs[-1][2])
            else:
                runs.append((number, number, rank))
    shown = sorted(sorted(runs, key=lambda run: _room(run[2], memory))[:_MOST_BARS], key=lambda run: run[0])
    rows = [(f"{unit} {first}" if first == last else f"{unit}s {first}–{last}", rank) for first, last, rank in shown]
    some = f", the {_MOST_BARS} fullest of {len(runs)}" if len(runs) > _MOST_BARS else ""
    alike = ", or neighbours that look alike" if len(runs) < len(found) else ""
    return rows, f"{unit}{', by its fullest rank' if unit == 'node' else ''}{alike}{some}"


def _looks(rank: Plan, memory: str) -> tuple[str, str]:
    return size(_room(rank, memory)), size(rank[memory]["capacity"])


def _room(rank: Plan, memory: str) -> int:
    return int(rank[memory]["capacity"] - rank[f"{memory}_bytes"])


def _memory_map(rows: Sequence[tuple[str, Plan]], memory: str, colours: Mapping[str, str]) -> str:
    most = max(max(rank[memory]["capacity"], rank[f"{memory}_bytes"]) for _, rank in rows)
    bars = []
    for label, rank in rows:
        room = _room(rank, memory)
        said = f"{size(room)} free" if room >= 0 else f"{size(-room)} too much"
        bars.append(Bar(label, rank[memory]["kinds"], said, rank[memory]["capacity"]))
    return _stacked(bars, colours, KINDS, size, left=110, thickness=_BAR, gap=3, most=most)


def _traffic(plan: Plan) -> list[str]:
    ranks = plan["num_ranks"]
    bars = []
    for one in plan["traffic"]:
        for label, key in ((one["table"], "bytes"), ("… if every token asked", "bytes_without_distinct")):
            values = {stage: _sum(one[key][stage]) / ranks for stage in STAGES}
            bars.append(Bar(label, values, size(sum(values.values()))))
    total = sum(_sum(one["bytes"][stage]) for one in plan["traffic"] for stage in STAGES)
    if not total:
        return [html_page.heading("What travels", 3), html_page.note("Nothing: there is one rank.")]
    colours = {stage: _colour(index) for index, stage in enumerate(STAGES)}
    html = _legend({text: colours[stage] for stage, text in STAGES.items()}) + _stacked(bars, colours, STAGES, size)
    share = [
        f"{one['table']} {one['asked']['rows'] / one['asked_without_distinct']['rows']:.0%}"
        for one in plan["traffic"]
        if one["asked_without_distinct"]["rows"]
    ]
    inside = sum(one["bytes"][stage]["inside"] for one in plan["traffic"] for stage in STAGES) / total
    caption = (
        f"Bytes that a rank sends in a step, on average; {inside:.0%} of them stay inside nodes. Rows asked for, of "
        f"those that every token would ask for: {', '.join(share)}."
    )
    return [html_page.heading("What travels", 3), html_page.figure(html, caption)]


def _times(plan: Plan) -> list[str]:
    bars = [
        Bar(label, plan[key], duration(sum(plan[key].values())))
        for label, key in (("a step", "seconds_of_parts"), ("… if every token asked", "seconds_without_distinct"))
    ]
    colours = {part: _colour(index) for index, part in enumerate(PARTS)}
    html = _legend({text: colours[part] for part, text in PARTS.items()})
    html += _stacked(bars, colours, PARTS, duration)
    caption = (
        "Parts of a step one after another, by arithmetic on the cluster's data sheet: what to look at first, not what "
        f"a clock will show. {_bottleneck(plan)}"
    )
    return [html_page.heading("What a step waits for", 3), html_page.figure(html, caption)]


def _tables(plan: Plan) -> str:
    rows = [
        [
            table["name"],
            f"{table['rows']:,}",
            str(table["width"]),
            size(table["bytes"]),
            table["sharding"],
            table["kernel"] + (f", cache {table['cache_load_factor']:.0%}" if table["cache_load_factor"] else ""),
            f"{len(table['ranks'])} of {plan['num_ranks']}",
        ]
        for table in plan["tables"]
    ]
    return html_page.table(["table", "rows", "width", "bytes", "sharding", "kernel", "ranks that hold it"], rows)


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────


class Bar:
    """One row: parts end to end, what is written after them, and an outline as long as `room`."""

    def __init__(self, label: str, values: Mapping[str, float], said: str, room: float | None = None) -> None:
        self.label, self.values, self.said, self.room = label, values, said, room


def _stacked(
    bars: Sequence[Bar],
    colours: Mapping[str, str],
    names: Mapping[str, str],
    write: Callable[[float], str],
    *,
    left: int = 190,
    thickness: int = 20,
    gap: int = 6,
    most: float = 0.0,
) -> str:
    """Bars of parts, one row each, on one scale."""
    most = most or max(sum(bar.values.values()) for bar in bars) or 1.0
    scale = (_WIDTH - left - 130) / most
    parts, height = [], len(bars) * (thickness + gap) + 8
    for index, bar in enumerate(bars):
        y, x = 4 + index * (thickness + gap), float(left)
        middle = y + thickness / 2 + 4
        parts.append(f'<text x="{left - 8}" y="{middle}" text-anchor="end">{escape(bar.label)}</text>')
        for name in names:
            width = bar.values.get(name, 0) * scale
            if width:
                said = escape(f"{bar.label}: {names[name]} {write(bar.values[name])}")
                parts.append(
                    f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{thickness}" fill="{colours[name]}">'
                    f"<title>{said}</title></rect>"
                )
                x += width
        end = x
        if bar.room is not None:
            end = max(x, left + bar.room * scale)
            parts.append(
                f'<rect x="{left}" y="{y}" width="{bar.room * scale:.2f}" height="{thickness}" fill="none" '
                f'stroke="var(--quiet)"/>'
            )
            if x > left + bar.room * scale + 0.01:
                there = f"{left + bar.room * scale:.2f}"
                parts.append(
                    f'<path d="M{there} {y - 1}v{thickness + 2}" stroke="var(--ink)" stroke-width="3" fill="none"/>'
                )
        parts.append(f'<text x="{end + 6:.1f}" y="{middle}">{escape(bar.said)}</text>')
    # On a narrow screen the bars are scrolled, not shrunk until nothing can be read.
    return (
        f'<div class="scroll"><svg style="min-width: {_NARROWEST}px" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="parts of a whole">{"".join(parts)}</svg></div>'
    )


def _legend(colours: Mapping[str, str]) -> str:
    keys = "".join(
        f'<span><i style="background:{colour}"></i>{escape(text)}</span>' for text, colour in colours.items()
    )
    return f'<div class="legend">{keys}</div>'


def _colour(index: int) -> str:
    return f"var(--c{index % 8})"


def _sum(where: Mapping[str, float]) -> float:
    """Inside nodes and between them."""
    return where["inside"] + where["between"]
