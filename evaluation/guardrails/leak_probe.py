"""Does what is asked for reach the model? The same requests are encoded twice, the second time with another future.

Of some users everything from the end of what their request may see is changed: items, and with them codes and artists,
times, event types, durations, organic flags. What a request may see, and the time at which it is made, stay. The states
by which items are scored must then be the same to the last bit. Unlike a look at figures, this needs no model that is
already suspiciously good, and it goes through the code that makes the batches as well as through the model.

R requests · S requests of the sample · E events of the store · e of the excerpt · L token budget · D model width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.seeding import derive_seed
from data.batches import Batch, BatchMaker, EventColumns
from data.event_store import EventStore
from data.examples import Examples
from data.loader import event_columns
from data.packing import pack
from data.ranges import positions_of
from data.schema import MISSING_ORGANIC, MISSING_PLAYED_RATIO
from data.sequences import Windows
from data.stochastic_length import StochasticLength
from evaluation.evaluator import Reader
from evaluation.guardrails.base import FAIL, INFO, PASS, Guardrail
from evaluation.requests import Requests
from evaluation.results import Ints

LEAK = "target leakage"

RULE = (
    "With every held-out event replaced (item, codes, artists, time, type, duration, organic flag), the states by "
    "which items are scored stay the same to the last bit."
)
_AFTER_DAYS = 30 * 86_400
"""Later by up to so many seconds are the events of the other future."""


@dataclass(frozen=True)
class Excerpt:
    """The whole histories of some users, and one request of each.

    Args:
        columns: their events alone, users numbered anew.
        windows: [S] requests, of these users.
        history_stop_S: a request may see its user's events [0, history_stop).
        num_items, num_types: what an event may be of.
    """

    columns: EventColumns
    windows: Windows
    history_stop_S: Ints
    num_items: int
    num_types: int


BatchesOf = Callable[[EventColumns], Iterable[Batch]]
"""The batches of an excerpt's windows, made from given columns."""


def leak_probe(
    reader: Reader, requests: Requests, store: EventStore, device: torch.device, *, sample: int, seed: int
) -> Guardrail:
    """Probe a model as an evaluation reads it. Collective where tables are sharded: the same on every rank.

    The model must be in evaluation mode: dropout would differ from one call to the next.

    Args:
        sample: requests to probe, of as many users.
    """
    excerpt = take_excerpt(store, requests, sample, seed)

    def batches(columns: EventColumns) -> Iterator[Batch]:
        for batch in excerpt_batches(columns, excerpt.windows, reader):
            yield batch.to(device)

    return probe_targets(reader.encode, batches, excerpt, seed)


def probe_targets(encode: Callable[[Batch], Tensor], batches: BatchesOf, excerpt: Excerpt, seed: int) -> Guardrail:
    """Encode the excerpt's requests as they are, again, and with another future.

    Args:
        encode: a batch → states [L, D].
        batches: how its batches are made.
    """
    before_SD = _states(encode, batches(excerpt.columns))
    again_SD = _states(encode, batches(excerpt.columns))
    after_SD = _states(encode, batches(other_future(excerpt, seed)))
    probed = len(before_SD)
    if not torch.equal(before_SD, again_SD):
        return Guardrail(
            LEAK,
            INFO,
            f"Not judged: the model gives other states when it is asked the same twice ({probed} requests).",
            RULE,
            "see that dropout is off and that kernels are deterministic, then probe again",
        )
    moved_S = (before_SD != after_SD).any(dim=1)
    moved = int(moved_S.sum())
    figures = {"requests": probed, "moved": moved}
    if moved:
        furthest = float((before_SD - after_SD).abs().max())
        return Guardrail(
            LEAK,
            FAIL,
            f"{moved} of {probed} requests are answered otherwise when only what follows them is changed: the model "
            f"sees what it is asked to predict. States differ by up to {furthest:.2g}.",
            RULE,
            "no figure of this model can be believed: find which column of the batch carries the future",
            figures | {"furthest": furthest},
        )
    return Guardrail(
        LEAK, PASS, f"{probed} requests with another future: not a bit of their states moves.", RULE, "", figures
    )


def take_excerpt(store: EventStore, requests: Requests, sample: int, seed: int) -> Excerpt:
    """Draw users, and of each the first of their requests, with all their events."""
    users_X, first_X = np.unique(requests.targets.users_R, return_index=True)
    generator = np.random.default_rng(derive_seed(seed, "leak probe"))
    drawn = np.sort(generator.permutation(len(users_X))[:sample])
    users_S, rows_S = users_X[drawn], first_X[drawn]
    lengths_S = np.diff(store.offsets)[users_S]
    at_e = positions_of(store.offsets[users_S], lengths_S)
    whole = event_columns(store)

    def taken(values_E: np.ndarray | None) -> np.ndarray | None:
        return None if values_E is None else values_E[at_e]

    columns = EventColumns(
        offsets=np.concatenate([[0], np.cumsum(lengths_S)]),
        items=whole.items[at_e],
        timestamps=whole.timestamps[at_e],
        event_types=whole.event_types[at_e],
        durations=taken(whole.durations),
        organic=taken(whole.organic),
        played=taken(whole.played),
    )
    windows = requests.windows
    assert windows.asked is not None
    assert windows.request_time is not None
    own = Windows(
        np.arange(len(users_S)),
        windows.start[rows_S],
        windows.stop[rows_S],
        windows.learn_from[rows_S],
        windows.asked[rows_S],
        windows.request_time[rows_S],
    )
    return Excerpt(columns, own, requests.history_stop_R[rows_S], store.num_items, len(store.event_types))


def other_future(excerpt: Excerpt, seed: int) -> EventColumns:
    """The columns with every event changed that a request may not see; where there is one value only, it stays."""
    columns = excerpt.columns
    generator = np.random.default_rng(derive_seed(seed, "another future"))
    stops_S = columns.offsets[:-1] + excerpt.history_stop_S
    at_f = positions_of(stops_S, columns.offsets[1:] - stops_S)

    def changed(values_e: np.ndarray, others_f: np.ndarray) -> np.ndarray:
        copy: np.ndarray = values_e.copy()
        copy[at_f] = others_f.astype(values_e.dtype)
        return copy

    def another(values_e: np.ndarray, choices: int) -> np.ndarray:
        """Any value of 0 … choices − 1 but the event's own."""
        steps_f = generator.integers(1, choices, len(at_f)) if choices > 1 else np.zeros(len(at_f), np.int64)
        return changed(values_e, (values_e[at_f].astype(np.int64) + steps_f) % choices)

    times_f = columns.timestamps[at_f].astype(np.int64)
    latest = np.iinfo(columns.timestamps.dtype).max
    later_f = np.minimum(times_f + int(generator.integers(1, _AFTER_DAYS)), latest)  # they stay in order
    durations = columns.durations
    return dataclasses.replace(
        columns,
        items=another(columns.items, excerpt.num_items),
        timestamps=changed(columns.timestamps, later_f),
        event_types=another(columns.event_types, excerpt.num_types),
        durations=None if durations is None else changed(durations, _other_durations(durations[at_f], generator)),
        organic=None if columns.organic is None else another(columns.organic, MISSING_ORGANIC + 1),
        played=None if columns.played is None else another(columns.played, MISSING_PLAYED_RATIO + 1),
    )


def _other_durations(durations_f: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Ten times as long, so that whatever buckets there are, most are others; what was short or missing is drawn."""
    drawn_f = generator.integers(30, 3000, len(durations_f))
    values_f = durations_f.astype(np.int64)
    fits_f = (values_f > 0) & (values_f * 10 < np.iinfo(durations_f.dtype).max)
    return np.where(fits_f, values_f * 10, drawn_f)


def excerpt_batches(columns: EventColumns, windows: Windows, reader: Reader) -> Iterator[Batch]:
    """Batches of the windows as `data.loader` makes them, of the reader's token budget."""
    maker = BatchMaker(columns, reader.features, distinct=reader.distinct)
    examples = Examples(columns.offsets, columns.timestamps, windows, windows.lengths, StochasticLength(), None, seed=0)
    bin_of_S = pack(windows.lengths, reader.tokens)
    for number in range(int(bin_of_S.max()) + 1):
        rows = np.flatnonzero(bin_of_S == number)
        yield maker.make(examples.tokens(rows), rows, reader.tokens, 0.0)


@torch.no_grad()
def _states(encode: Callable[[Batch], Tensor], batches: Iterable[Batch]) -> Tensor:
    """The states [S, D] at the requests' tokens, as float32 on the CPU, in the order of the batches."""
    return torch.cat([encode(batch)[batch.offsets[1:] - 1].float().cpu() for batch in batches])
