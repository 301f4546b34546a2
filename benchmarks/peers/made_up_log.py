"""A log of MovieLens-1M's shape, made up, for where MovieLens-1M itself may not be downloaded.

As many users and films as there, each history at least 20 long, half of them below 96, 166 on average, 2,314 at most;
nobody rates a film twice; most ratings follow the one before within seconds, as people there sit down and rate many.
How long histories are is what events/s depends on; that tastes are no more than popularity bears on quality alone.
"""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import harness

USERS, ITEMS = 6040, 3706
SHORTEST, MEDIAN, MEAN, LONGEST = 20, 96, 165.6, 2314
_AT_ONCE = 512


def make_store(folder: Path, seed: int = 0) -> Path:
    """Prepare a store of such a log in `folder/store`, leave-last-out as MovieLens is."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.parquet"
    lengths_U = lengths()
    pq.write_table(
        pa.table(
            {
                "user": np.repeat(np.arange(USERS), lengths_U),
                "item": _items(lengths_U, np.random.default_rng([seed, 0])),
                "timestamp": _times(lengths_U, np.random.default_rng([seed, 1])),
            }
        ),
        log,
    )
    keys = ["columns.user=user", "columns.item=item", "columns.timestamp=timestamp", "timestamp_unit=s"]
    harness.measure(["-m", "data.prepare", "source=table", f"path={log}", *keys, f"out={folder / 'store'}"])
    return folder / "store"


def lengths() -> np.ndarray:
    """Events of each user, int64 [USERS]: quantiles of a lognormal above the shortest history, nothing drawn."""
    typical, mean = MEDIAN - SHORTEST, MEAN - SHORTEST
    spread = np.sqrt(2 * np.log(mean / typical))
    normal = NormalDist(np.log(typical), spread)
    quantiles = [normal.inv_cdf((user + 0.5) / USERS) for user in range(USERS)]
    lengths_U: np.ndarray = np.minimum(SHORTEST + np.exp(quantiles), LONGEST).astype(np.int64)
    return lengths_U


def _items(lengths_U: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Films by popularity, each once a user: the first of all films in the order of noisy popularity."""
    log_popularity_N = -0.9 * np.log(np.arange(ITEMS) + 30.0)
    pieces = []
    for first in range(0, USERS, _AT_ONCE):
        lengths_u = lengths_U[first : first + _AT_ONCE]
        noisy_uN = log_popularity_N + random.gumbel(size=(len(lengths_u), ITEMS))
        order_uN = np.argsort(-noisy_uN, axis=1)
        pieces += [order_N[:length] for order_N, length in zip(order_uN, lengths_u, strict=True)]
    # The likeliest of a user stand first: shuffled, as what is popular is not rated first.
    return np.concatenate([random.permutation(piece) for piece in pieces])


def _times(lengths_U: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Seconds: sittings of ratings some 20 s apart, days between a sitting and the next."""
    events = int(lengths_U.sum())
    gaps_E = np.where(
        random.random(events) < 0.02, random.exponential(5 * 86_400, events), random.exponential(20, events)
    )
    begun_U = 956_703_932 + random.random(USERS) * 200 * 86_400
    total_E = np.cumsum(gaps_E)
    ends_U = np.cumsum(lengths_U)
    base_U = total_E[ends_U - lengths_U]
    times_E: np.ndarray = (total_E + np.repeat(begun_U - base_U, lengths_U)).astype(np.int64)
    return times_E
