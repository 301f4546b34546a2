"""What is kept of users between requests: their events, and what the model has read of them.

Memory of a cache: `model.incremental.token_bytes` for each token that there is room for, which are at most an eighth
and 64 more than have been read, and at most 48 bytes an event. A history is never longer than the model's window, and a
`CachePool` holds caches up to so many bytes.

Shapes: D width.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import InputError
from data.batches import ItemFeatures
from model.past import Past
from model.recommender import Recommender
from serving.user_events import UserEvents
from serving.user_series import PlacedSeries, UserSeries


@dataclass(frozen=True)
class UserCache:
    """What a model has read of one user. It never changes; `MFalcon.extend` gives another.

    Requests write behind it, in its memory: a cache, and those that it was extended to, are asked and extended by one
    thread at a time.

    Attributes:
        fingerprint: of the model.
        events: the newest of the user's, as many as a window has at most.
        dropped: how many older ones there were.
        past: of the tokens of the first `read` events.
        read: all but the newest where that waits for the request, as its clock does and what is known of series
            behind it; else all.
        newest_D: the normalised state of the newest token, where it has been read for good.
        series: all that is told of the user's slow series.
        placed: of these, what was read in front of the first `read` events.
    """

    fingerprint: str
    events: UserEvents
    dropped: int
    past: Past
    read: int
    newest_D: Tensor | None = None
    series: UserSeries = dataclasses.field(default_factory=UserSeries.none)
    placed: PlacedSeries = dataclasses.field(default_factory=PlacedSeries.none)

    @property
    def nbytes(self) -> int:
        """Of keys, values, what biases ask, the events and series."""
        newest = 0 if self.newest_D is None else self.newest_D.numel() * self.newest_D.element_size()
        return self.past.nbytes + self.events.nbytes + newest + self.series.nbytes + 24 * len(self.placed)

    def belongs_before(self, history: UserEvents, series: UserSeries | None = None) -> bool:
        """Whether a whole history, and whole series, begin with all that was seen here."""
        told = UserSeries.none() if series is None else series
        return history[self.dropped :].begins_with(self.events) and told.begins_with(self.series)


class CachePool:
    """Caches by user, those asked for least lately let go first, in so many bytes. Not for several threads at once.

    Attributes:
        hits, misses: how often `get` found a cache, and how often not.
        evictions: caches let go to make room, those included that are larger than the pool.
        nbytes: of all caches held.
    """

    def __init__(self, max_bytes: int) -> None:
        """Room for `max_bytes`.

        Raises:
            InputError: that is negative.
        """
        if max_bytes < 0:
            raise InputError(f"max_bytes={max_bytes}: a pool of caches cannot be smaller than nothing: give 0 or more")
        self.max_bytes = max_bytes
        self.hits = self.misses = self.evictions = self.nbytes = 0
        self._held: OrderedDict[object, tuple[UserCache, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, user: object) -> UserCache | None:
        """The user's cache, if it is held."""
        if user not in self._held:
            self.misses += 1
            return None
        self.hits += 1
        self._held.move_to_end(user)
        return self._held[user][0]

    def put(self, user: object, cache: UserCache) -> None:
        """Hold a user's cache in the place of what was held of the user."""
        self.drop(user)
        size = cache.nbytes
        if size > self.max_bytes:
            self.evictions += 1
            return
        while self.nbytes + size > self.max_bytes:
            _, (_, freed) = self._held.popitem(last=False)
            self.nbytes -= freed
            self.evictions += 1
        self._held[user] = cache, size
        self.nbytes += size

    def drop(self, user: object) -> None:
        """Let go of what is held of a user, if anything."""
        if user in self._held:
            self.nbytes -= self._held.pop(user)[1]


def model_fingerprint(model: Recommender, features: ItemFeatures, sample_LD: Tensor) -> str:
    """A hash of all that keys and values come from, but for the tables, of which a sample stands for the rest.

    Of the configuration, every dense parameter, codes, artists and keys of all items; tables may be sharded, and are
    large, and no step of training changes them alone.

    Args:
        sample_LD: vectors that tables give for some events.
    """
    digest = hashlib.sha256(repr(dataclasses.asdict(model.tower.cfg)).encode())
    of_items = {
        "codes": features.codes_NC,
        "artist offsets": features.artist_offsets,
        "artists": features.artist_values,
        "keys": features.keys_N,
        "sample": sample_LD,
    }
    for name, value in (*sorted(model.tower.state_dict().items()), *of_items.items()):
        if value is not None:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
