"""Matrix factorisation of who played what (Hu, Koren and Volinsky 2008), fitted by the library implicit.

The loss is Σ_ui c_ui (p_ui − x_u·y_i)² + λ (Σ‖x_u‖² + Σ‖y_i‖²), where p is whether user u played item i, and c is
α·r_ui where so and 1 elsewhere. The paper's c is 1 + α·r; without the 1 a play that fades (`recency`) ends as no play
at all, which for the next item is worth far more: on MovieLens-100K .133 against .092 of validation NDCG@10.

U users · N items · n items that may be returned · B users in the batch · b users of a block · F factors · K list
length.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from common.config import option
from common.errors import InputError
from common.progress import Progress, format_count
from common.seeding import derive_seed
from evaluation.baselines.lists import UNSCORED, best_of_all, in_blocks, newest_items
from evaluation.baselines.training_log import TrainingLog
from serving.engines.base import Query, RankedCatalogue

PLAYS, LOG, ONCE = "plays", "log", "once"

PAIR_BYTES = 48
"""Of a user and an item in training: the matrix twice, by users and by items, and what it is sorted in."""

Factors = npt.NDArray[np.float32]


@dataclass
class IalsConfig:
    """What is factorised, and how; the defaults are those that the validation events of MovieLens-100K chose."""

    factors: int = option(64, "numbers that a user, and an item, is described by", minimum=1)
    alpha: float = option(10.0, "weight of a play in the loss; that of no play is 1")
    regularisation: float = option(30.0, "λ: weight of the squares of all factors", minimum=0)
    iterations: int = option(15, "times that users, then items, are solved for", minimum=1)
    plays: str = option(LOG, "r of an item played n times: n, log₂(1 + n), or at most once", choices=(PLAYS, LOG, ONCE))
    history: int = option(0, "events of a history that a user's factors are made from, the newest; 0 = all", minimum=0)
    recency: float = option(0.8, "of them, an event weighs so much of the one after it, above 0 and at most 1")
    threads: int = option(1, "threads that fit; the factors are the same for any number", minimum=1)
    seed: int = option(0, "where the factors start")

    def __post_init__(self) -> None:
        """Refuse plays that weigh nothing."""
        faults = []
        if not self.alpha > 0:
            faults.append(f"`alpha` is {self.alpha}, must be above 0: plays would weigh nothing")
        if not 0 < self.recency <= 1:
            faults.append(f"`recency` is {self.recency}, must be above 0 and at most 1")
        if faults:
            raise InputError(*faults)


class IalsEngine:
    """Solves for the factors of whoever asks, from the history they ask with, and ranks items by x·y.

    Requests see more than training did, so no user's factors of the fit are used. An item that was not played in
    training has no factors; it comes last, with the lowest score there is.

    Args:
        model: implicit's, fitted (`factorise`).
        config: as it was fitted; `history` and `recency` are free.
        plays_N: training plays.
        catalogue: the items that may be returned.
    """

    name = "ials"
    log_probabilities = False

    def __init__(
        self, model: Any, config: IalsConfig, plays_N: npt.NDArray[np.int64], catalogue: RankedCatalogue
    ) -> None:
        self._model, self.config, self.catalogue = model, config, catalogue
        device = catalogue.item_order.device
        self._items_nF = torch.from_numpy(model.item_factors).to(device)[catalogue.item_order]
        self._unplayed_n = torch.from_numpy(plays_N == 0).to(device)[catalogue.item_order]

    @property
    def item_factors_NF(self) -> Factors:
        """Factors of the items, of zeros where an item was not played in training."""
        factors_NF: Factors = self._model.item_factors
        return factors_NF

    def user_factors(self, query: Query) -> Factors:
        """Factors [B, F] of the users of a query: what minimises the loss for the items as they are."""
        assert query.history is not None, "ials reads histories"
        played_BN = newest_items(query.history, self.catalogue.num_items, self.config.history, self.config.recency)
        with threadpool_limits(1, "blas"):
            factors_BF: Factors = self._model.recalculate_user(
                np.arange(query.num_users), _confidence(played_BN, self.config)
            )
        return factors_BF

    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`."""
        users_BF = torch.from_numpy(self.user_factors(query)).to(self._items_nF.device)

        def block(part: Query, first: int) -> tuple[Tensor, Tensor]:
            scores_bn = users_BF[first : first + part.num_users] @ self._items_nF.T
            scores_bn[:, self._unplayed_n] = UNSCORED
            return best_of_all(self.catalogue, scores_bn, part, k)

        return in_blocks(query, self.catalogue.size, block)


def factorise(log: TrainingLog, config: IalsConfig, memory_gb: float, *, quiet: bool = False) -> Any:
    """Factorise the training part: implicit's model, fitted.

    Args:
        config: all but `history` and `recency` is read.
        memory_gb: the most that the fit may take, in 10⁹ bytes.
        quiet: show no progress.

    Raises:
        InputError: it would take more.
    """
    needed_gb = ((log.num_users + log.num_items) * config.factors * 4 * 2 + log.num_events * PAIR_BYTES) / 1e9
    if needed_gb > memory_gb:
        raise InputError(
            f"`baseline.ials.factors` is {config.factors}: the factors of {format_count(log.num_users)} users and"
            f" {format_count(log.num_items)} items and the {format_count(log.num_events)} training events take about"
            f" {needed_gb:.1f} GB, and `baseline.memory_gb` is {memory_gb:g}; lower baseline.ials.factors or raise"
            " baseline.memory_gb"
        )
    # Here alone: loading it takes as long as a small fit.
    library = importlib.import_module("implicit.cpu.als")
    label = f"factorise {format_count(log.num_items)} items"
    with Progress(label, config.iterations, "iterations", quiet=quiet) as progress, threadpool_limits(1, "blas"):
        model = library.AlternatingLeastSquares(
            factors=config.factors,
            regularization=config.regularisation,
            alpha=1.0,
            iterations=config.iterations,
            num_threads=config.threads,
            random_state=derive_seed(config.seed, "ials") % 2**32,
        )
        model.fit(_confidence(_plays(log), config), show_progress=False, callback=lambda *_: progress.advance())
    return model


def _plays(log: TrainingLog) -> sp.csr_matrix:
    """[U, N]: how often users played items in training."""
    parts = [(block.users_E.astype(np.int32), block.items_E.astype(np.int32)) for block in log.blocks()]
    users, items = (np.concatenate(column) for column in zip(*parts, strict=True))
    return sp.csr_matrix((np.ones(len(users)), (users, items)), shape=(log.num_users, log.num_items))


def _confidence(played: sp.csr_matrix, config: IalsConfig) -> sp.csr_matrix:
    """c of the pairs that were played, float32."""
    rates = {PLAYS: played.data, LOG: np.log2(1 + played.data), ONCE: np.minimum(played.data, 1)}[config.plays]
    confidence = (config.alpha * rates).astype(np.float32)
    return sp.csr_matrix((confidence, played.indices, played.indptr), shape=played.shape)
