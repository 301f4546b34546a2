"""Stochastic Length (HSTU paper, equation 4 and Appendix F): long histories are thinned at random in training.

With N the longest history and α in (1, 2], a history of n inputs stays as it is if n ≤ N^(α/2). A longer one stays so
with probability N^α / n², and is otherwise thinned to N^(α/2) of its inputs: attention then costs O(N^α) a user instead
of O(N²). The targets of the inputs that are left are what they were: the events that really came next.

Which inputs are left (Appendix F.1), with f_i = t_n − t_i the age of input i:
    greedy      the newest
    random      any, with equal probability
    weighted    drawn without replacement by weights 1 − f_i / Σ f_j

W windows · n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.config import option
from common.errors import InputError
from common.hashing import uniform_from

GREEDY, RANDOM, WEIGHTED = "greedy", "random", "weighted"
SELECTIONS = (GREEDY, RANDOM, WEIGHTED)


@dataclass
class StochasticLength:
    """Whether and how training histories are thinned."""

    alpha: float = option(2.0, "exponent of equation (4), above 1; 2 thins nothing", minimum=1)
    selection: str = option(WEIGHTED, "which inputs of a thinned history are left", choices=SELECTIONS)

    def __post_init__(self) -> None:
        """Hold alpha to the paper's range."""
        if not 1 < self.alpha <= 2:
            raise InputError(f"`stochastic_length.alpha` is {self.alpha}, must be above 1 and at most 2, which is off")

    @property
    def is_on(self) -> bool:
        """Whether any history is thinned."""
        return self.alpha < 2

    def threshold(self, longest: int) -> int:
        """N^(α/2) for the longest history N: what a history is thinned to."""
        return max(int(longest ** (self.alpha / 2) + 1e-9), 1)

    def kept_lengths(self, lengths_W: np.ndarray, longest: int, random: np.random.Generator) -> np.ndarray:
        """How many inputs each window is left with, int64 [W].

        Args:
            lengths_W: inputs per window, at most `longest`.
            longest: N.
        """
        stays_W = random.random(len(lengths_W)) < self._stays(lengths_W, longest)
        return np.where(stays_W, lengths_W, np.minimum(self.threshold(longest), lengths_W))

    def expected_lengths(self, lengths_W: np.ndarray, longest: int) -> np.ndarray:
        """Expectation of `kept_lengths`, float64 [W]."""
        stays_W = self._stays(lengths_W, longest)
        thinned_W = np.minimum(self.threshold(longest), lengths_W)
        expected: np.ndarray = stays_W * lengths_W + (1 - stays_W) * thinned_W
        return expected

    def _stays(self, lengths_W: np.ndarray, longest: int) -> np.ndarray:
        """Probability that a window stays whole."""
        lengths_W = lengths_W.astype(np.float64)
        return np.where(lengths_W > self.threshold(longest), longest**self.alpha / lengths_W**2, 1.0).clip(max=1.0)

    def chosen(
        self, lengths_B: np.ndarray, kept_B: np.ndarray, ages_n: np.ndarray, positions_n: np.ndarray, seed: int
    ) -> np.ndarray:
        """Which inputs are left, bool [n]: `kept_B[b]` of the `lengths_B[b]` inputs of each window.

        Args:
            ages_n: f, seconds, per input of all windows end to end.
            positions_n: a number that names the input for good, so that the draw depends on nothing else but `seed`.
        """
        ends_B = np.cumsum(lengths_B)
        starts_B = ends_B - lengths_B
        if self.selection == GREEDY:
            return np.arange(len(ages_n)) >= np.repeat(ends_B - kept_B, lengths_B)
        row_n = np.repeat(np.arange(len(lengths_B)), lengths_B)
        draws_n = uniform_from(positions_n, seed)
        if self.selection == WEIGHTED:
            total_n = np.add.reduceat(ages_n.astype(np.float64), starts_B)[row_n] if len(starts_B) else ages_n
            weight_n = 1 - ages_n / np.maximum(total_n, 1)
            # Efraimidis and Spirakis (2006): the largest u^(1/w) are a draw without replacement by weights w.
            draws_n = np.log(draws_n) / np.maximum(weight_n, 1e-12)
        order = np.lexsort((-draws_n, row_n))
        place_n = np.empty(len(ages_n), dtype=np.int64)
        place_n[order] = np.arange(len(ages_n)) - starts_B[row_n[order]]
        return place_n < kept_B[row_n]


def sparsity(lengths: np.ndarray, longest: int) -> float:
    """One minus mean over longest length (Tables 3, 14 and 15 of the HSTU paper)."""
    return 1.0 - float(np.mean(lengths)) / longest


def attention_sparsity(lengths: np.ndarray, longest: int) -> float:
    """`s2` of Tables 14 and 15: one minus the mean of squared lengths over the longest squared.

    The paper's text calls it "one minus the sparsity of the attention matrix"; its figures, which exceed the sparsity
    of the lengths, are those of the sparsity itself.
    """
    return 1.0 - float(np.mean(np.square(lengths.astype(np.float64)))) / longest**2
