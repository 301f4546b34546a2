"""Whether codes keep an item's company: do its nearest items stay its nearest once vectors are read back from codes?

n items that have a vector · m items of the sample · q queries · u distinct rows of a sample · D vector width ·
k neighbours.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.seeding import derive_seed
from semantic_ids.quantizers.base import Codes, Quantizer, Vectors
from semantic_ids.vectors.base import ItemVectors

Ints = npt.NDArray[np.int64]

QUERIES, DATABASE, NEIGHBOURS = 1000, 100_000, 10

_QUERY_BLOCK, _ROW_BLOCK = 256, 16384


def neighbour_overlap(
    vectors: ItemVectors,
    quantizer: Quantizer,
    codes_nC: npt.NDArray[np.integer],
    *,
    queries: int = QUERIES,
    database: int = DATABASE,
    k: int = NEIGHBOURS,
    seed: int,
    asymmetric: bool = False,
) -> float:
    """Share of an item's true k nearest items that are among its k nearest by reconstructed vectors, mean over queries.

    Nearest is by Euclidean distance to a sample of the catalogue, which the queries are drawn from; an item is not its
    own neighbour. Of items at one distance the lower index is nearer: items with equal vectors, or equal tuples, have
    equal distances to the last bit. The figure falls as the sample grows denser, so it compares codes at one `database`
    and one `seed` only.

    Args:
        vectors: as fitted.
        codes_nC: codes of these items, row by row; levels that the quantiser does not have are not looked at.
        queries: how many items are asked for their neighbours.
        database: how many items are in the sample.
        asymmetric: take the query's vector as it is and reconstruct the others alone, as a search index does.

    Returns:
        From 0 to 1; where there are fewer than k + 1 items, all others count, and 1 where there are no others.
    """
    assert len(codes_nC) == len(vectors), (len(codes_nC), len(vectors))
    assert queries > 0
    assert k > 0
    places_m, true_mD = vectors.sample(database, seed)
    k = min(k, len(places_m) - 1)
    if k < 1:
        return 1.0
    generator = np.random.default_rng(derive_seed(seed, "neighbour queries"))
    asked_q = np.sort(generator.choice(len(places_m), min(queries, len(places_m)), replace=False))
    kept_mD = _reconstruct(quantizer, np.asarray(codes_nC[places_m]))
    expected_qk = nearest(true_mD, true_mD[asked_q], asked_q, k)
    found_qk = nearest(kept_mD, true_mD[asked_q] if asymmetric else kept_mD[asked_q], asked_q, k)
    return float((expected_qk[:, :, None] == found_qk[:, None, :]).any(axis=2).mean())


def nearest(vectors_mD: Vectors, queries_qD: Vectors, own_q: Ints, k: int) -> Ints:
    """The k nearest rows [q, k] of each query by Euclidean distance, of equal ones the lower first, without its own.

    Args:
        own_q: the row that is the query itself and therefore left out.
        k: below the number of rows.
    """
    # Equal rows are compared once, so that rounding cannot tell them apart; distinct rows stand by their first place.
    _, first_u, place_m = np.unique(_as_bytes(vectors_mD), return_index=True, return_inverse=True)
    first_u, place_m = _by_first_place(first_u, place_m.ravel())
    members = _first_members(place_m, k + 1)
    distinct_uD = vectors_mD[first_u]
    found = [
        _nearest_of_block(distinct_uD, members, len(vectors_mD), queries_qD[block], own_q[block], k)
        for block in (slice(begin, begin + _QUERY_BLOCK) for begin in range(0, len(queries_qD), _QUERY_BLOCK))
    ]
    return np.concatenate(found)


def _reconstruct(quantizer: Quantizer, codes_mC: npt.NDArray[np.integer]) -> Vectors:
    own_mC: Codes = codes_mC[:, : quantizer.num_levels].astype(np.uint16)
    blocks = [quantizer.reconstruct(own_mC[begin : begin + _ROW_BLOCK]) for begin in range(0, len(own_mC), _ROW_BLOCK)]
    return np.concatenate(blocks)


def _as_bytes(vectors_mD: Vectors) -> npt.NDArray[np.void]:
    rows_mD = np.ascontiguousarray(vectors_mD + np.float32(0))  # -0.0 and 0.0 are one number with two spellings
    return rows_mD.view(np.dtype((np.void, rows_mD.itemsize * rows_mD.shape[1]))).ravel()


def _by_first_place(first_u: Ints, place_m: Ints) -> tuple[Ints, Ints]:
    """Number distinct rows in the order in which they first stand."""
    order = np.argsort(first_u)
    rank_u = np.empty_like(order)
    rank_u[order] = np.arange(len(order))
    return first_u[order], rank_u[place_m]


def _first_members(place_m: Ints, most: int) -> Ints:
    """The first `most` places [u, most] of each distinct row, ascending; filled up with m, which is no place."""
    order = np.argsort(place_m, kind="stable")
    counts_u = np.bincount(place_m)
    within_m = np.arange(len(order)) - np.repeat(np.cumsum(counts_u) - counts_u, counts_u)
    members = np.full((len(counts_u), most), len(place_m))
    kept = within_m < most
    members[place_m[order[kept]], within_m[kept]] = order[kept]
    return members


def _nearest_of_block(
    distinct_uD: Vectors, members: Ints, num_rows: int, queries_qD: Vectors, own_q: Ints, k: int
) -> Ints:
    """See `nearest`. The k + 1 nearest items lie in the k + 1 nearest distinct rows, ties by first place."""
    distances_qu = _squared_distances(queries_qD, distinct_uD)
    most = min(k + 1, len(distinct_uD))
    limit_q = np.partition(distances_qu, most - 1, axis=1)[:, most - 1]
    query, row = np.nonzero(distances_qu <= limit_q[:, None])
    query, row, distance = _first_of_each(query, row, distances_qu[query, row], most)
    item, width = members[row].ravel(), members.shape[1]
    query, distance = np.repeat(query, width), np.repeat(distance, width)
    keep = (item < num_rows) & (item != own_q[query])
    _, item, _ = _first_of_each(query[keep], item[keep], distance[keep], k)
    return item.reshape(-1, k)


def _squared_distances(queries_qD: Vectors, rows_uD: Vectors) -> npt.NDArray[np.float64]:
    """[q, u], in double precision: cancellation in float32 would reorder near neighbours of vectors far from 0."""
    queries = queries_qD.astype(np.float64)
    distances_qu = np.empty((len(queries), len(rows_uD)))
    for begin in range(0, len(rows_uD), _ROW_BLOCK):
        rows = rows_uD[begin : begin + _ROW_BLOCK].astype(np.float64)
        distances_qu[:, begin : begin + _ROW_BLOCK] = np.square(rows).sum(axis=1) - 2 * (queries @ rows.T)
    distances_qu += np.square(queries).sum(axis=1)[:, None]
    return distances_qu


def _first_of_each(
    query: Ints, place: Ints, distance: npt.NDArray[np.float64], most: int
) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """At most so many entries of each query: the nearest, of equally near ones the lower place."""
    order = np.lexsort((place, distance, query))
    counts = np.bincount(query)
    within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = order[within < most]
    return query[order], place[order], distance[order]
