"""FAISS indexes made from vectors: which kind, how it is learnt and filled, where it lives.

n vectors · D vector width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss as typed_faiss
import numpy as np
import torch

from common.config import option
from common.errors import InputError
from serving.engines.exclusions import Floats

faiss: Any = typed_faiss
"""Its stubs lack some classes and some arguments."""

FLAT, IVFPQ, HNSW = "flat", "ivfpq", "hnsw"
KINDS = (FLAT, IVFPQ, HNSW)
L2, INNER_PRODUCT = "l2", "inner product"

_SEED = 20240229
_PER_CENTROID = 39
"""Fewest vectors from which FAISS learns a centroid without complaint."""

_BLOCK_NUMBERS = 1 << 22
"""Numbers of vectors that are added at a time."""


@dataclass
class IndexConfig:
    """How vectors are searched.

    `flat` compares with every vector. `ivfpq` compares with the product codes of the vectors in the `probes` nearest of
    `lists` lists, and then `refine` × as many as were asked for with the vectors themselves. `hnsw` walks a graph.

    With the defaults, recall@100 among unit vectors of 64 numbers whose variances fall as 1/i was 0.94 for ivfpq among
    a million and 0.96 for hnsw among 200,000; in clusters, as vectors that were learnt have them, both had above 0.99.
    Where no direction is like another (isotropic vectors), ivfpq with the same probes finds but half.
    """

    kind: str = option(FLAT, "flat: every vector; ivfpq: inverted lists of product codes; hnsw: a graph", choices=KINDS)
    lists: int = option(0, "ivfpq: lists; 0 is 4√n", minimum=0)
    probes: int = option(128, "ivfpq: lists searched a query", minimum=1)
    sub_vectors: int = option(0, "ivfpq: parts of a vector with a code each; 0 is one for two numbers", minimum=0)
    bits: int = option(8, "ivfpq: bits a code, 4 to 8", minimum=4)
    refine: int = option(2, "ivfpq: candidates a place of the list that are compared exactly", minimum=1)
    training_vectors: int = option(0, "ivfpq: vectors that lists and codes are learnt from; 0 is 64 a list", minimum=0)
    links: int = option(32, "hnsw: links a vector", minimum=2)
    ef_construction: int = option(80, "hnsw: vectors looked at when one is added", minimum=1)
    ef_search: int = option(256, "hnsw: vectors looked at a query, or as many as are asked for", minimum=1)
    build_threads: int = option(
        1, "hnsw: threads that add vectors; with more, FAISS does not promise the same graph twice", minimum=1
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be built, all at once."""
        faults = [
            f"`{leaf.name}` is {value}, must be at least {leaf.metadata['minimum']}"
            for leaf in dataclasses.fields(self)
            if (value := getattr(self, leaf.name)) is not None
            and leaf.metadata["minimum"] is not None
            and value < leaf.metadata["minimum"]
        ]
        if self.kind not in KINDS:
            faults.append(f"`kind` is {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.bits > 8:
            faults.append(f"`bits` is {self.bits}, must be at most 8: a code is a byte or less")
        if 0 < self.lists < self.probes:
            faults.append(f"`probes` is {self.probes}, but there are {self.lists} `lists`; give no more than that")
        if 0 < self.training_vectors < _PER_CENTROID * max(self.lists, 1 << max(0, min(self.bits, 8))):
            faults.append(
                f"`training_vectors` is {self.training_vectors}, too few for {self.lists} lists and codes of"
                f" {self.bits} bits: give {_PER_CENTROID} for each list and for each of the 2^bits codes, or 0"
            )
        if faults:
            raise InputError(*faults)


def engine_name(config: IndexConfig) -> str:
    """What an engine over such an index is called: its kind, and `faiss` where the search is exact."""
    return "faiss" if config.kind == FLAT else config.kind


@dataclass(frozen=True, eq=False)
class BuiltIndex:
    """A FAISS index with vectors in it.

    Args:
        kind: what it is; not what was asked for, where there were too few vectors for that.
        index: FAISS's.
        vectors_nD: the vectors; the index's own, where it holds them, so that they are not held twice.
        notes: where it differs from what was asked for, and why.
        on_cpu: the index in main memory: the same, unless the other is on a GPU.
        resources: what must live as long as the index.
    """

    kind: str
    index: Any
    vectors_nD: Floats
    notes: list[str]
    on_cpu: Any
    resources: Any = None

    @property
    def on_gpu(self) -> bool:
        """Whether it is searched there."""
        return self.index is not self.on_cpu


def build_index(vectors_nD: Floats, config: IndexConfig, metric: str) -> BuiltIndex:
    """The index that `config` asks for, or what is possible with so few vectors, on a GPU where that can be.

    Args:
        vectors_nD: float32, finite, none twice.
        metric: `L2` or `INNER_PRODUCT`.
    """
    notes: list[str] = []
    kind = _kind(len(vectors_nD), config, notes)
    index = _empty(vectors_nD, kind, config, metric, notes)
    size, width = vectors_nD.shape
    block = max(1, _BLOCK_NUMBERS // width)
    with _threads(config.build_threads if kind == HNSW else None):
        for first in range(0, size, block):
            index.add(np.ascontiguousarray(vectors_nD[first : first + block]))
    return as_built(kind, index, vectors_nD, notes)


def as_built(kind: str, index: Any, vectors_nD: Floats, notes: list[str]) -> BuiltIndex:
    """A full index where it is best searched, with the vectors where they are already."""
    if kind != IVFPQ and len(vectors_nD):
        flat = index if kind == FLAT else faiss.downcast_index(index.storage)
        vectors_nD = faiss.rev_swig_ptr(flat.get_xb(), vectors_nD.size).reshape(vectors_nD.shape)
    return _on_device(BuiltIndex(kind, index, vectors_nD, notes, index))


def _kind(size: int, config: IndexConfig, notes: list[str]) -> str:
    """The kind asked for, unless there are too few vectors to learn the smallest of codes from."""
    fewest = _PER_CENTROID << 4
    if config.kind == IVFPQ and size < fewest:
        notes.append(
            f"{size} distinct vectors are too few for ivfpq, which learns its codes from {fewest}: searched flat"
        )
        return FLAT
    return config.kind


def _empty(vectors_nD: Floats, kind: str, config: IndexConfig, metric: str, notes: list[str]) -> Any:
    """The index without vectors, learnt where there is something to learn."""
    size, width = vectors_nD.shape
    faiss_metric = faiss.METRIC_L2 if metric == L2 else faiss.METRIC_INNER_PRODUCT
    if kind == FLAT:
        return faiss.IndexFlat(width, faiss_metric)
    if kind == HNSW:
        index = faiss.IndexHNSWFlat(width, config.links, faiss_metric)
        index.hnsw.efConstruction = config.ef_construction
        return index
    wanted = {
        "lists": config.lists or round(4 * math.sqrt(size)),
        "bits": config.bits,
        "sub_vectors": config.sub_vectors or math.ceil(width / 2),
    }
    made = {
        "lists": max(1, min(wanted["lists"], size // _PER_CENTROID)),
        "bits": min(config.bits, (size // _PER_CENTROID).bit_length() - 1),
        "sub_vectors": next(parts for parts in range(min(wanted["sub_vectors"], width), 0, -1) if width % parts == 0),
    }
    notes += [
        f"`{name}` is {made[name]}, not {wanted[name]}: there are {size} distinct vectors of {width} numbers"
        for name in wanted
        if made[name] != wanted[name]
    ]
    coarse = faiss.IndexFlat(width, faiss_metric)
    index = faiss.IndexIVFPQ(coarse, width, made["lists"], made["sub_vectors"], made["bits"], faiss_metric)
    index.cp.seed = index.pq.cp.seed = _SEED
    index.train(_sample(vectors_nD, config.training_vectors or 64 * max(made["lists"], 1 << made["bits"])))
    return index


def _sample(vectors_nD: Floats, count: int) -> Floats:
    """Vectors drawn without replacement."""
    if count >= len(vectors_nD):
        return np.ascontiguousarray(vectors_nD)
    chosen = np.random.default_rng(_SEED).choice(len(vectors_nD), count, replace=False)
    return np.ascontiguousarray(vectors_nD[np.sort(chosen)])


def _on_device(built: BuiltIndex) -> BuiltIndex:
    """On this process's GPU, where FAISS knows of one and can put it there; else as it is."""
    if built.kind == HNSW or not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        return built
    try:
        resources = faiss.StandardGpuResources()
        moved = faiss.index_cpu_to_gpu(resources, torch.cuda.current_device(), built.index)
    except RuntimeError as error:
        built.notes.append(f"the index stays on the CPU: {' '.join(str(error).split())}")
        return built
    return dataclasses.replace(built, index=moved, resources=resources)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """FAISS's number of threads for a while."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
