"""A catalogue and a block of listens that several tests look at."""

from __future__ import annotations

from functools import cache

import numpy as np

from data.synthetic.catalogue import Catalogue, make_catalogue
from data.synthetic.draws import generator
from data.synthetic.listeners import Listens, make_listens
from data.synthetic.reactions import Heard, hear

BEGIN = 0
USERS = 60


@cache
def catalogue() -> Catalogue:
    """So many items for the listens below as Yambda has for its own, or more."""
    return make_catalogue(items=60_000, artists=60_000 // 7, begin=BEGIN, seed=3)


@cache
def lengths() -> np.ndarray:
    random = np.random.default_rng(4)
    return np.maximum(random.lognormal(7.6, 0.8, USERS).astype(np.int64), 1)


@cache
def listens() -> Listens:
    return make_listens(lengths(), BEGIN, catalogue(), generator(5))


@cache
def heard() -> Heard:
    return hear(listens(), USERS, catalogue(), generator(6), generator(7))
