"""The search against a full sort in float64, with whatever excluded; what is built, and that it is built again alike.

n columns · D vector width · K list length.
"""

from __future__ import annotations

import re

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serving.engines.faiss_indexes
import serving.engines.index_building
from common.errors import InputError
from serving.engines.faiss_indexes import FLAT, HNSW, INNER_PRODUCT, IVFPQ, KINDS, L2, IndexConfig, VectorIndex

METRICS = (L2, INNER_PRODUCT)
BUILT: dict[tuple[str, str], VectorIndex] = {}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def vectors(columns: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(columns, width)))


def large(kind: str, metric: str) -> VectorIndex:
    """Of 2,000 columns, one in ten of which has another's vector; of all lengths, where distances are what counts."""
    if (kind, metric) not in BUILT:
        vectors_nD = vectors(2000)
        if metric == L2:
            vectors_nD *= np.random.default_rng(9).uniform(0.5, 2, (2000, 1)).astype(np.float32)
        vectors_nD[::10] = vectors_nD[1]
        BUILT[kind, metric] = VectorIndex(vectors_nD, IndexConfig(kind=kind, probes=8, refine=4), metric)
    return BUILT[kind, metric]


def costs(vectors_nD: np.ndarray, queries_XD: np.ndarray, metric: str) -> np.ndarray:
    wide_nD, wide_XD = vectors_nD.astype(np.float64), queries_XD.astype(np.float64)
    return np.square(wide_nD - wide_XD[:, None]).sum(-1) if metric == L2 else -(wide_XD[:, None] * wide_nD).sum(-1)


def all_vectors(index: VectorIndex) -> np.ndarray:
    return index.vectors_GD[index.distinct.groups(np.arange(index.num_columns))]


def check_lists(index: VectorIndex, queries: np.ndarray, k: int, excluded: list[np.ndarray]) -> float:
    """Full, nothing excluded, each once, exact values, best first, ties by column; gives the recall of exact lists."""
    users = np.repeat(np.arange(len(queries)), [len(own) for own in excluded])
    exclusions = index.exclusions(users, np.concatenate(excluded))
    values, columns = index.search(queries, k, exclusions)
    assert values.shape == columns.shape == (len(queries), k)
    exact = costs(all_vectors(index), queries, index.metric)
    exact[users, np.concatenate(excluded)] = np.inf
    found_costs = values if index.metric == L2 else -values
    recalls = [1.0]
    for row, own in enumerate(excluded):
        length = min(k, index.num_columns - len(np.unique(own)))
        list_K = columns[row, :length]
        assert (columns[row, length:] == -1).all()
        assert np.isposinf(found_costs[row, length:]).all()
        assert len(np.unique(list_K)) == length
        np.testing.assert_allclose(found_costs[row, :length], exact[row, list_K], rtol=1e-5, atol=1e-6)
        pairs = list(zip(found_costs[row, :length].tolist(), list_K.tolist(), strict=True))
        assert pairs == sorted(pairs)
        if length:
            worst = np.sort(exact[row])[length - 1]
            recalls.append(float((exact[row, list_K] <= worst + 1e-6).mean()))
    return float(np.mean(recalls))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(KINDS),
    metric=st.sampled_from(METRICS),
    columns=st.integers(1, 40),
    values=st.integers(1, 40),
    k=st.integers(1, 45),
)
def test_small_lists_are_those_of_a_full_sort(
    seed: int, kind: str, metric: str, columns: int, values: int, k: int
) -> None:
    random = np.random.default_rng(seed)
    index = VectorIndex(vectors(values, seed=seed)[random.integers(0, values, columns)], IndexConfig(kind), metric)
    excluded = [random.integers(0, columns, random.integers(0, 2 * columns)) for _ in range(4)]
    assert check_lists(index, vectors(4, seed=seed + 1), k, excluded) == 1.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 10, 150])
def test_whatever_is_excluded_lists_are_full_and_near_the_best(kind: str, metric: str, k: int) -> None:
    """Users without exclusions stand in one batch with users whose nearest hundreds, or nearly all, are excluded."""
    index = large(kind, metric)
    queries = vectors(8, seed=1)
    nearest = np.argsort(costs(all_vectors(index), queries, metric), axis=1, kind="stable")
    numbers = [0, 3, 100, 500, 1500, 1995, 2000, 0]
    excluded = [own[:number] for own, number in zip(nearest, numbers, strict=True)]
    recall = check_lists(index, queries, k, excluded)
    assert recall >= (1.0 if kind == FLAT else 0.7 if k == 1 else 0.8), recall


@pytest.mark.parametrize("kind", KINDS)
def test_only_those_whose_lists_are_short_are_asked_for_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = large(kind, L2)
    asked: list[tuple[int, int]] = []
    scanned: list[int] = []
    near, scan = index._near, index._scan
    monkeypatch.setattr(index, "_near", lambda *each: asked.append((len(each[0]), each[1])) or near(*each))
    monkeypatch.setattr(index, "_scan", lambda *each: scanned.append(len(each[0])) or scan(*each))
    queries = vectors(6, seed=1)
    nearest = np.argsort(costs(all_vectors(index), queries, L2), axis=1, kind="stable")
    excluded = [nearest[0, :300], nearest[1, :1990], *(nearest[2:, :0])]
    check_lists(index, queries, 10, excluded)
    deepest = len(index.distinct)
    assert asked[0][0] == 6
    assert [depth for _, depth in asked] == [min(asked[0][1] << step, deepest) for step in range(len(asked))]
    expected = {FLAT: [6, 2, 2, 2, 2, 1, 1], HNSW: [6, 2, 2, 2, 2], IVFPQ: [6, 2, 2]}
    assert [number for number, _ in asked] == expected[kind]
    assert scanned == ([] if kind == FLAT else [1])


def test_beyond_the_deepest_the_rest_is_a_scan_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    index = large(FLAT, L2)
    queries = vectors(5, seed=2)
    nearest = np.argsort(costs(all_vectors(index), queries, L2), axis=1, kind="stable")
    monkeypatch.setattr(serving.engines.faiss_indexes, "_DEEPEST", 64)
    for numbers in (1, 1 << 10, 1 << 22):
        monkeypatch.setattr(serving.engines.faiss_indexes, "_BLOCK_NUMBERS", numbers)
        assert check_lists(index, queries, 20, [own[:700] for own in nearest]) == 1.0


def test_users_of_queries_may_repeat() -> None:
    index = large(FLAT, L2)
    queries = vectors(4, seed=3)
    exclusions = index.exclusions(np.zeros(500, np.int64), np.arange(500))
    _, together = index.search(queries, 20, exclusions, np.array([0, 1, 1, 0]))
    _, first = index.search(queries[[0, 3]], 20, exclusions, np.array([0, 0]))
    _, second = index.search(queries[[1, 2]], 20)
    np.testing.assert_array_equal(together, np.concatenate([first[:1], second, first[1:]]))


@pytest.mark.parametrize("width", [8, 64, 100])
def test_equal_vectors_come_by_column_at_any_width(width: int) -> None:
    vectors_nD = np.repeat(vectors(3, width), 500, axis=0)[np.random.default_rng(0).permutation(1500)]
    for metric in METRICS:
        for queries in (1, 50):
            index = VectorIndex(vectors_nD, metric=metric)
            assert len(index.distinct) == 3
            _, columns = index.search(vectors(queries, width, seed=5), 700)
            group = index.distinct.groups(columns.ravel()).reshape(columns.shape)
            for row in range(queries):
                assert (np.diff(columns[row, :500]) > 0).all()
                assert (np.diff(columns[row, 500:]) > 0).all()
                assert len(np.unique(group[row, :500])) == len(np.unique(group[row, 500:])) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_two_builds_are_one_index(kind: str) -> None:
    """Whatever the number of threads that FAISS may use."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(4)
    try:
        built = [VectorIndex(vectors(3000), IndexConfig(kind=kind), L2) for _ in range(2)]
        assert faiss.omp_get_max_threads() == 4
    finally:
        faiss.omp_set_num_threads(before)
    first, second = (faiss.serialize_index(each.built.index) for each in built)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = VectorIndex(vectors(700), IndexConfig(kind=kind), L2)
    for module in (serving.engines.faiss_indexes, serving.engines.index_building, serving.engines.exclusions):
        monkeypatch.setattr(module, "_BLOCK_NUMBERS", 8 * 100)
    parts = VectorIndex(vectors(700), IndexConfig(kind=kind), L2)
    for found, expected in zip(parts.search(vectors(9, seed=1), 12), whole.search(vectors(9, seed=1), 12), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", [FLAT, HNSW])
def test_vectors_are_held_once(kind: str) -> None:
    """What is compared exactly is read in the index."""
    index = VectorIndex(vectors(50), IndexConfig(kind=kind), L2)
    flat = index.built.index if kind == FLAT else faiss.downcast_index(index.built.index.storage)
    assert index.vectors_GD.ctypes.data == int(flat.get_xb())
    np.testing.assert_array_equal(index.vectors_GD, vectors(50))


def test_an_index_reaches_most_of_the_nearest_with_its_defaults() -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(100, 16))
    vectors_nD, queries = (
        unit(centres[random.integers(0, 100, size)] + 0.7 * random.normal(size=(size, 16))) for size in (6000, 200)
    )
    _, expected = VectorIndex(vectors_nD, metric=INNER_PRODUCT).search(queries, 100)
    for kind in (IVFPQ, HNSW):
        _, found = VectorIndex(vectors_nD, IndexConfig(kind=kind), INNER_PRODUCT).search(queries, 100)
        recall = np.mean([np.isin(one, other).mean() for one, other in zip(expected, found, strict=True)])
        assert recall > 0.95, (kind, recall)


def test_a_small_catalogue_has_fewer_lists_and_shorter_codes_and_says_so() -> None:
    index = VectorIndex(vectors(1000, width=7), IndexConfig(kind=IVFPQ, sub_vectors=3), L2)
    assert (index.built.index.nlist, index.built.index.pq.nbits, index.built.index.pq.M) == (25, 4, 1)
    assert [re.sub(":.*", "", note) for note in index.notes] == [
        "`lists` is 25, not 126",
        "`bits` is 4, not 8",
        "`sub_vectors` is 1, not 3",
    ]
    smaller = VectorIndex(vectors(600), IndexConfig(kind=IVFPQ), L2)
    assert smaller.kind == FLAT
    assert "600 distinct vectors" in smaller.notes[0]
    assert VectorIndex(vectors(600), IndexConfig(kind=HNSW), L2).notes == []


def test_what_cannot_be_built_is_refused_with_all_its_faults() -> None:
    with pytest.raises(InputError) as raised:
        IndexConfig(kind="tree", lists=10, probes=20, bits=9, links=1, training_vectors=5)
    assert [fault.split(" ")[0] for fault in raised.value.faults] == [
        "`links`",
        "`kind`",
        "`bits`",
        "`probes`",
        "`training_vectors`",
    ]


def test_vectors_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.engines.faiss_indexes, "_BLOCK_NUMBERS", 80)
    vectors_nD = vectors(50)
    vectors_nD[33, 2] = np.nan
    with pytest.raises(InputError, match="row 33"):
        VectorIndex(vectors_nD)


@pytest.mark.parametrize("kind", KINDS)
def test_of_nothing_there_is_nothing_to_find(kind: str) -> None:
    index = VectorIndex(np.empty((0, 4), np.float32), IndexConfig(kind=kind), L2)
    values, columns = index.search(vectors(2, width=4), 3)
    assert (columns == -1).all()
    assert np.isposinf(values).all()
    assert [part.shape for part in large(kind, L2).search(vectors(0), 3)] == [(0, 3), (0, 3)]


class FakeGpu:
    """Stands for FAISS's GPU classes: what is moved is a copy, or nothing fits."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def moved(self, resources: object, device: int, index: object) -> object:
        if self.fails:
            raise RuntimeError("out of\nmemory")
        return faiss.clone_index(index)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_gpu_takes_goes_there(kind: str, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls, not the GPU: no FAISS with GPU classes is installed."""
    module = serving.engines.index_building.faiss
    monkeypatch.setattr(module, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(module, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(module, "index_cpu_to_gpu", FakeGpu(fails).moved, raising=False)
    monkeypatch.setattr(serving.engines.index_building.torch.cuda, "current_device", lambda: 0)
    index = VectorIndex(vectors(2000), IndexConfig(kind=kind), L2)
    assert index.built.on_gpu == (kind != HNSW and not fails)
    assert ("the index stays on the CPU: out of memory" in index.notes) == (kind != HNSW and fails)
    assert check_lists(index, vectors(3, seed=1), 10, [np.arange(1000), np.arange(0), np.arange(5)]) > 0.8
