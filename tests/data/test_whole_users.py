from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.sources.whole_users import Runs, runs_of_rows, whole_users

Blocks = list[list[tuple[int, list[int]]]]


def obvious(lengths: list[int], limit: int) -> Blocks:
    """User by user: a block ends before the user with whom it would exceed the limit."""
    blocks: Blocks = []
    event, filled = 0, limit + 1
    for user, length in enumerate(lengths):
        if filled + length > limit:
            blocks.append([])
            filled = 0
        blocks[-1].append((user, list(range(event, event + length))))
        event += length
        filled += length
    return blocks


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=15),
    st.integers(1, 20),
    st.lists(st.integers(1, 10), min_size=1, max_size=40),
)
def test_blocks_do_not_depend_on_how_the_rows_came(lengths: list[int], limit: int, pieces: list[int]) -> None:
    users = np.repeat(np.arange(len(lengths)), lengths)

    def parts() -> Iterator[Runs]:
        first = 0
        while first < len(users):
            last = first + pieces[first % len(pieces)]
            yield runs_of_rows(users[first:last], {"event": np.arange(len(users))[first:last]})
            yield runs_of_rows(users[:0], {"event": np.arange(0)})  # a block of which nothing was kept
            first = last

    found: Blocks = []
    for block in whole_users(parts(), limit):
        offsets = block.offsets
        assert offsets[-1] == len(block.columns["event"])
        found.append(
            [
                (int(user), block.columns["event"][first:last].tolist())
                for user, first, last in zip(block.users, offsets[:-1], offsets[1:], strict=True)
            ]
        )
    assert found == obvious(lengths, limit)
