"""The keys of `data.synthesize`, and which belong to which kind of log."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from common.config import REQUIRED, option
from common.errors import InputError
from data.synthetic.catalogue import END_TICK, TICKS_A_DAY
from data.synthetic.lengths import MEDIAN, P95
from data.synthetic.listeners import longest_history

YAMBDA, DIRICHLET = "yambda", "dirichlet"
KINDS = ("listens", "likes", "dislikes", "unlikes", "undislikes", "multi_event")
LAYOUTS = ("flat", "sequential")

_YAMBDA_ITEMS, _DIRICHLET_ITEMS = 934_057, 20_000
_MOST = 100_000_000
"""Raw ids are ten times as large, and Yambda's are uint32."""

_YAMBDA_KEYS = {
    "size",
    "users",
    "artists",
    "median_history",
    "days",
    "embedding_width",
    "layouts",
    "kinds",
    "sequential_names",
}
_DIRICHLET_KEYS = {"records", "record_length", "categories", "initial_share"}


@dataclass
class SynthesizeConfig:
    """The keys of `data.synthesize`."""

    kind: str = option(REQUIRED, "which process and which files", choices=(YAMBDA, DIRICHLET))
    out: str = option(REQUIRED, "folder to write; an earlier output of this command there is replaced")
    seed: int = option(0, "all randomness follows from it", minimum=0)
    items: int | None = option(
        None, f"catalogue size; where not given {_YAMBDA_ITEMS:,} (yambda), {_DIRICHLET_ITEMS:,} (dirichlet)", minimum=1
    )
    size: str = option("50m", "yambda: name of the folder under flat/ and sequential/; a name only")
    users: int = option(10_000, "yambda: number of users", minimum=1)
    artists: int | None = option(None, "yambda: number of artists, a seventh of the items where not given", minimum=1)
    median_history: int = option(MEDIAN, "yambda: median listens a user, which scales all lengths", minimum=1)
    days: int = option(300, "yambda: length of the log without its last day; the end is Yambda's", minimum=1)
    embedding_width: int = option(128, "yambda: numbers an embedding; 0 writes no embeddings.parquet", minimum=0)
    layouts: list[str] = option(["flat"], "yambda: layouts to write, of the same events", choices=LAYOUTS)
    kinds: list[str] = option(["listens"], "yambda: files to write, of the same events", choices=KINDS)
    sequential_names: str = option(
        "singular",
        "yambda: list columns named item_id and timestamp (singular) or item_ids and timestamps (plural)",
        choices=("singular", "plural"),
    )
    records: int = option(1_000_000, "dirichlet: number of records", minimum=1)
    record_length: int = option(128, "dirichlet: items a record", minimum=1)
    categories: int = option(100, "dirichlet: number of categories", minimum=1)
    initial_share: float = option(0.4, "dirichlet: share of the item ids in use at the first record", minimum=0)

    def __post_init__(self) -> None:
        """Fill in what depends on the kind, and check what belongs together."""
        if self.items is None:
            self.items = _YAMBDA_ITEMS if self.kind == YAMBDA else _DIRICHLET_ITEMS
        faults = self._foreign_keys()
        if not self.out:
            faults.append("`out` is empty; name a folder")
        faults += self._yambda_faults() if self.kind == YAMBDA else self._dirichlet_faults()
        if faults:
            raise InputError(*faults)

    @property
    def num_items(self) -> int:
        """`items`, filled in."""
        assert self.items is not None
        return self.items

    @property
    def num_artists(self) -> int:
        """`artists`, or a seventh of the items."""
        return self.artists if self.artists is not None else max(self.num_items // 7, 1)

    @property
    def begin_tick(self) -> int:
        """The log's first tick: `days` days and one before its end, 0 at the least."""
        return max(0, END_TICK - (self.days + 1) * TICKS_A_DAY)

    def _foreign_keys(self) -> list[str]:
        foreign = _DIRICHLET_KEYS if self.kind == YAMBDA else _YAMBDA_KEYS
        faults = []
        for leaf in dataclasses.fields(self):
            default = leaf.default_factory() if callable(leaf.default_factory) else leaf.default
            if leaf.name in foreign and getattr(self, leaf.name) != default:
                faults.append(f"`{leaf.name}` means nothing to kind={self.kind}; leave it out")
        return faults

    def _yambda_faults(self) -> list[str]:
        faults = []
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.size):
            faults.append(f"`size` is {self.size!r}, must be letters, digits, _ and -, since a folder is named so")
        for name in ("users", "items"):
            if getattr(self, name) > _MOST:
                faults.append(f"`{name}` is {getattr(self, name):,}, must be at most {_MOST:,}; raw ids are uint32")
        if self.num_artists > self.num_items:
            faults.append(
                f"`artists` is {self.num_artists:,}, must be at most `items` ({self.num_items:,}); "
                "each artist has an item"
            )
        for name in ("layouts", "kinds"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                faults.append(f"`{name}` is {given}, must name one or more, each once")
        longest, needed = longest_history(self.begin_tick), self.median_history * P95 / MEDIAN
        if needed > longest:
            faults.append(
                f"`median_history` is {self.median_history:,}: one user in twenty then has over {needed:,.0f} listens, "
                f"and {self.days} days hold {longest:,}; take fewer listens or more `days`"
            )
        if self.days > 300:
            faults.append(f"`days` is {self.days}, must be at most 300; Yambda's origin is so long before its end")
        return faults

    def _dirichlet_faults(self) -> list[str]:
        faults = []
        if not 0 < self.initial_share <= 1:
            faults.append(f"`initial_share` is {self.initial_share}, must be above 0 and at most 1")
        elif int(self.initial_share * self.num_items) < 1:
            faults.append(
                f"`initial_share` is {self.initial_share}, which leaves no item of {self.num_items} "
                "for the first record"
            )
        if self.num_items > _MOST:
            faults.append(f"`items` is {self.num_items:,}, must be at most {_MOST:,}")
        if self.records >= 2**32:
            faults.append(f"`records` is {self.records:,}, must be below {2**32:,}; records are numbered in uint32")
        return faults
