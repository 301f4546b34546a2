"""Items that nobody may be given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from data.event_store import EventStore
from evaluation.results import Ints

_MAX_BYTES = 1 << 30


def read_deny_list(path: Path, store: EventStore) -> Ints:
    """Indices of the items of a text file, ascending; the file has one id of the log a line, blank lines aside.

    Raises:
        InputError: the file cannot be read, or names items that the store does not have; the first of them are told.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: larger than {_MAX_BYTES:,} bytes, which no list of items to leave out should be")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of items, one a line: {error}") from None
    ids = [line for line in lines if line]
    found = pc.index_in(pa.array(ids, pa.string()), value_set=store.item_ids.cast(pa.string()))
    unknown = [raw for raw, place in zip(ids, found.to_pylist(), strict=True) if place is None]
    if unknown:
        raise InputError(
            f"{path}: {len(unknown)} of its {len(ids)} items are not in the store {store.path}: "
            f"{', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''}; give ids as the log writes them"
        )
    indices: Ints = np.unique(found.to_numpy(zero_copy_only=False).astype(np.int64))
    return indices
