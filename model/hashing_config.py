"""How item ids share a table with fewer rows than there may be ids, as options of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import option
from common.errors import InputError


@dataclass
class HashingConfig:
    """A table of a fixed number of rows whose owners change: who gets a row, and who loses it."""

    rows: int = option(
        1_680_000, "rows of the table, divisible by buckets; the last of each bucket is shared", minimum=2
    )
    buckets: int = option(
        1680,
        "parts of the table that do not depend on the number of ranks, which must divide it (1680: 1 … 8, 10, 12, 14, "
        "15, 16 ranks); an id may own a row of one bucket alone",
        minimum=1,
    )
    eviction: str = option(
        "distance-lfu",
        "who loses its row; lfu: the id looked up in the fewest steps; lru: the one not looked up for longest; "
        "distance-lfu: the lowest number of steps / (steps since the last + 1) ^ decay",
        choices=("lfu", "lru", "distance-lfu"),
    )
    decay: float = option(1.0, "of distance-lfu: 0 forgets nothing, more forgets faster", minimum=0)
    interval: int = option(100, "steps between two rounds of handing out rows", minimum=1)
    admission: str = option(
        "all",
        "which ids without a row may ask for one in a round; all; count: those looked up in `threshold` of its steps; "
        "average: those looked up in more than `threshold` times the average number of their bucket's ids; "
        "probabilistic: each step that looks an id up admits it with the probability `threshold`",
        choices=("all", "count", "average", "probabilistic"),
    )
    threshold: float = option(1.0, "of admission", minimum=0)

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        faults = []
        if self.rows % self.buckets:
            nearest = -(-self.rows // self.buckets) * self.buckets
            faults.append(f"rows={self.rows} is not divisible by buckets={self.buckets}: set rows={nearest}")
        if self.rows < 2 * self.buckets:
            faults.append(
                f"rows={self.rows} are fewer than two for each of buckets={self.buckets}, of which one is shared: "
                f"set more rows or fewer buckets"
            )
        if self.admission == "probabilistic" and self.threshold > 1:
            faults.append(f"threshold={self.threshold} of admission=probabilistic is a probability: at most 1")
        if faults:
            raise InputError(*faults)
