"""A log in Yambda's layout: blocks of users generated beside each other, written in order.

The randomness of a block is a function of the seed and the block's number; blocks are cut by the lengths of
histories alone. So the same configuration gives the same log on any number of cores. Memory holds the catalogue,
a few numbers a user, and the blocks in work.

What there is to learn in it is told in the modules that make it: data/synthetic/catalogue.py (items), listeners.py
(sessions and choices), reactions.py (skips, likes), catalogue_files.py (embeddings), lengths.py (histories).

U users of a block · N items.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from common.progress import Progress
from common.seeding import derive_seed
from data.synthetic import log_files
from data.synthetic.catalogue import TICK_S, Catalogue, make_catalogue
from data.synthetic.catalogue_files import write_embeddings, write_maps
from data.synthetic.config import SynthesizeConfig
from data.synthetic.draws import generator
from data.synthetic.lengths import published_lengths
from data.synthetic.listeners import longest_history, make_listens
from data.synthetic.reactions import Heard, hear

BLOCK_LISTENS = 2**20
"""A block is as many whole users as begin within so many listens; another number is another log."""
_MOST_WORKERS = 4
"""More would hold more blocks in memory than they would save time."""

Tables = dict[tuple[str, str], pa.Table]
"""(layout, kind) → a block's rows of that file."""


def write_yambda(config: SynthesizeConfig, folder: Path) -> dict[str, int]:
    """Write all files under `folder`. Returns counts: users, rows of each kind, items, artists, ….

    Raises:
        OSError: a file cannot be written.
    """
    catalogue = make_catalogue(config.num_items, config.num_artists, config.begin_tick, config.seed)
    write_maps(folder, catalogue, config.seed)
    counts = {"users": config.users, "items": config.num_items, "artists": config.num_artists}
    if config.embedding_width:
        counts["embeddings"] = write_embeddings(
            folder / "embeddings.parquet", catalogue, config.embedding_width, config.seed
        )
    return counts | _write_log(config, catalogue, folder)


@dataclass(frozen=True)
class Block:
    """A block's events as tables, and what is counted of them."""

    tables: Tables
    listens: int
    items: np.ndarray
    first_second: int
    last_second: int


class Blocks:
    """The users of a log, cut into blocks, and the making of any one of them."""

    def __init__(self, config: SynthesizeConfig, catalogue: Catalogue) -> None:
        """Draw the lengths and ids of all users, 12 bytes each."""
        self._config, self._catalogue = config, catalogue
        lengths = published_lengths(config.users, config.seed, config.median_history)
        self._lengths = np.minimum(lengths, longest_history(config.begin_tick)).astype(np.int64)
        self.num_listens = int(self._lengths.sum())
        random = generator(derive_seed(config.seed, "user ids"))
        self._uids = (101 + 10 * np.arange(config.users) + random.integers(0, 10, config.users)).astype(np.uint32)
        begins = (np.cumsum(self._lengths) - self._lengths) // BLOCK_LISTENS
        self._cuts = np.append(np.unique(begins, return_index=True)[1], config.users)

    def __len__(self) -> int:
        """How many blocks there are, at least one."""
        return len(self._cuts) - 1

    def heard(self, block: int) -> Heard:
        """The events of one block of users."""
        seed, with_reactions = self._config.seed, self._config.kinds != ["listens"]
        lengths_U = self._lengths[self._cuts[block] : self._cuts[block + 1]]
        random = generator(derive_seed(seed, "listens", block))
        listens = make_listens(lengths_U, self._config.begin_tick, self._catalogue, random)
        random_reactions = generator(derive_seed(seed, "reactions", block)) if with_reactions else None
        return hear(listens, len(lengths_U), self._catalogue, random, random_reactions)

    def make(self, block: int) -> Block:
        """The events of one block of users, as rows of all chosen files."""
        heard, config = self.heard(block), self._config
        uid_U = self._uids[self._cuts[block] : self._cuts[block + 1]]
        plural = config.sequential_names == "plural"
        tables: Tables = {}
        for kind in config.kinds:
            flat = log_files.flat_table(heard, kind, uid_U, self._catalogue.raw_N)
            if "flat" in config.layouts:
                tables["flat", kind] = flat
            if "sequential" in config.layouts:
                tables["sequential", kind] = log_files.sequential_table(flat, kind, plural)
        first, last = int(heard.tick_E.min()) * TICK_S, int(heard.tick_E.max()) * TICK_S
        return Block(tables, len(heard.item_E), heard.item_E, first, last)


def _write_log(config: SynthesizeConfig, catalogue: Catalogue, folder: Path) -> dict[str, int]:
    blocks = Blocks(config, catalogue)
    heard_N = np.zeros(config.num_items, dtype=bool)
    seconds: list[int] = []
    with ExitStack() as stack:
        writers = {
            (layout, kind): stack.enter_context(_writer(config, folder, layout, kind))
            for layout in config.layouts
            for kind in config.kinds
        }
        progress = stack.enter_context(Progress("listens", blocks.num_listens, "listens"))
        for block in _in_order(blocks.make, len(blocks)):
            for file, table in block.tables.items():
                writers[file].write(table)
            heard_N[block.items] = True
            seconds += [block.first_second, block.last_second]
            progress.advance(block.listens)
    layout = config.layouts[0]
    rows = {kind: writers[layout, kind].count for kind in config.kinds}
    if layout == "sequential":  # rows are users there
        rows = {f"users_of_{kind}": count for kind, count in rows.items()}
    ends = {"first_second": min(seconds), "last_second": max(seconds)}
    return rows | {"items_heard": int(heard_N.sum())} | ends


def _writer(config: SynthesizeConfig, folder: Path, layout: str, kind: str) -> log_files.RowGroupWriter:
    path = folder / layout / config.size / f"{kind}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "flat":
        return log_files.RowGroupWriter(path, log_files.flat_schema(kind), log_files.ROW_GROUP_ROWS)
    # One row group a block: as many events, and far fewer rows.
    return log_files.RowGroupWriter(path, log_files.sequential_schema(kind, config.sequential_names == "plural"), None)


def _in_order(make: Callable[[int], Block], count: int) -> Iterator[Block]:
    """Make blocks 0 … count − 1 on several threads (NumPy lets go of the interpreter) and yield them in order."""
    workers = min(os.cpu_count() or 1, _MOST_WORKERS)
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[Block]] = deque()
    try:
        for block in range(count):
            pending.append(pool.submit(make, block))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
