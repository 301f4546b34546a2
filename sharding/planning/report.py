"""A plan in words and columns, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from sharding.planning.memory import KINDS, MEMORIES
from sharding.planning.survey import Survey
from sharding.planning.topology import GIB
from sharding.planning.traffic import PARTS, STAGES

_MOST_RANKS = 8


def describe(found: Survey) -> str:
    """All that a dry run prints."""
    return "\n\n".join(
        [found.cluster.describe(), tables_of(found), memory_of(found), traffic_of(found), times_of(found), _last(found)]
    )


def tables_of(found: Survey) -> str:
    """Table by table: size, sharding, kernel, ranks."""
    rows = []
    for table in found.placement.tables:
        ranks = table.ranks
        where = f"{ranks[0]}–{ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}"
        if len(ranks) > 1 and len(ranks) != ranks[-1] - ranks[0] + 1:
            where = f"{len(ranks)} of {found.cluster.num_ranks}"
        cache = f", cache {table.cache_load_factor:.0%}" if table.cache_load_factor else ""
        rows.append(
            [
                table.name,
                f"{table.rows:,}",
                str(table.width),
                size(table.bytes),
                table.sharding,
                table.kernel + cache,
                where,
            ]
        )
    return columns(["table", "rows", "width", "bytes", "sharding", "kernel", "ranks"], rows)


def memory_of(found: Survey) -> str:
    """Rank by rank, kind by kind; of many ranks those that differ."""
    memories = [name for name in MEMORIES if any(getattr(rank, name) for rank in found.ranks)]
    parts = []
    for memory in memories:
        kinds = [kind for kind in KINDS if any(kind in getattr(rank, memory) for rank in found.ranks)]
        alike: dict[tuple[int, ...], list[int]] = {}
        for rank in found.ranks:
            held = getattr(rank, memory)
            row = (*(held.get(kind, 0) for kind in kinds), rank.used(memory), rank.headroom(memory))
            alike.setdefault(row, []).append(rank.rank)
        shown = sorted(alike.items(), key=lambda entry: entry[0][-1])[:_MOST_RANKS]
        rows = [[_ranks(ranks), *(size(amount) for amount in row)] for row, ranks in shown]
        table = columns([f"{memory.upper()} of ranks", *(KINDS[kind] for kind in kinds), "in all", "left"], rows)
        more = len(alike) - len(shown)
        parts.append(table + (f"\n… and {more} more kinds of ranks with more left" if more else ""))
    return "\n\n".join(parts)


def traffic_of(found: Survey) -> str:
    """Table by table, a step, all ranks: what is asked and what travels."""
    rows = []
    for now, plain in zip(found.traffic, found.plain_traffic, strict=True):
        use = found.workload.table(now.table)
        inside, between = (
            sum(float(getattr(getattr(now, stage), where).sum()) for stage in STAGES)
            for where in ("inside_W", "between_W")
        )
        saved = 1 - now.total / plain.total if plain.total else 0.0
        rows.append(
            [
                now.table,
                f"{use.ids:,} / {use.plain_ids:,}",
                size(now.ids.total),
                size(now.forward.total),
                size(now.backward.total),
                size(inside),
                size(between),
                f"{saved:.0%}" if plain.total else "–",
            ]
        )
    titles = ["a step", "rows asked / of all tokens", "ids", "vectors", "gradients", "in nodes", "between", "saved"]
    return columns(titles, rows)


def times_of(found: Survey) -> str:
    """Part by part, with and without each item asked once."""
    rows = [
        [PARTS[part], f"{seconds * 1e3:,.3f}", f"{seconds / found.step_seconds:.0%}"]
        for part, seconds in found.seconds.items()
    ]
    plain = sum(found.plain_seconds.values())
    rows.append(
        [
            "in all",
            f"{found.step_seconds * 1e3:,.3f}",
            f"{found.step_seconds / plain:.0%} of a step in which every token asks",
        ]
    )
    return columns(["by arithmetic, one after another", "ms", "share"], rows)


def _last(found: Survey) -> str:
    memory = found.main_memory
    rank = found.fullest
    left = rank.headroom(memory)
    room = f"{size(left)} left" if left >= 0 else f"{size(-left)} missing"
    return f"{memory.upper()} is fullest on rank {rank.rank}: {room}.\nBottleneck: {found.bottleneck()}"


def size(amount: float) -> str:
    """Bytes as people read them."""
    sign, amount = ("-" if amount <= -0.5 else ""), abs(amount)
    for unit, factor in (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if amount >= 0.97 * factor:
            return f"{sign}{amount / factor:,.2f} {unit}"
    return f"{sign}{amount:.0f} B"


def columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, the first to the left, the others to the right."""
    widths = [max(len(row[index]) for row in [titles, *rows]) for index in range(len(titles))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [titles, *rows]
    )


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return str(ranks[0])
    if len(ranks) == ranks[-1] - ranks[0] + 1:
        return f"{ranks[0]}–{ranks[-1]}"
    return f"{len(ranks)} like {ranks[0]}"
