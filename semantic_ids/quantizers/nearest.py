"""The nearest codebook row of many vectors: bfloat16 products find a short list, exact distances decide.

|x - c|² = |x|² - 2 (x·c - |c|²/2), so the nearest row has the highest score x·c - |c|²/2. A product in bfloat16 costs
0.4 of one in float32 on processors that have it, but errs. By how much is bounded, after Cauchy and Schwarz:

    |x̃·c̃ - x·c| ≤ |x - x̃| |c| + |x̃| |c - c̃|,    plus half a unit in the last place of the rounded result

so each row that may be the nearest is kept and scored anew in float32. The bound is taken for groups of rows of alike
length; with it, one row in ten has more than one candidate. Group maxima are what is read of the products: a plain
argmax over them costs as much as the products.

n vectors · V rows of the codebook · d width · G rows of a group · g groups · m candidates · b partial tuples kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GROUP_BITS = 4
_GROUP = 1 << _GROUP_BITS
"""Rows of a group. 8 to 16 read fastest; the maxima of the groups, 64 of 1,024 rows, are then a small matter."""

_FEWEST_ROWS = 256
"""Below, the products are small beside what the short list costs."""

_BIAS_COLUMNS = 2
"""|c|²/2 enters the product as two bfloat16 columns, high and low part, so that its rounding costs no candidates."""

_UNIT = 2.0**-9
"""Rounding to bfloat16 changes a number by at most this share of it."""

_ROUNDING = 2 * _UNIT
"""A product is rounded to bfloat16; as much again for the sums in float32 that lead to it, here and there."""

_NEVER = -(2.0**100)

_LONGEST_LIST = 64
"""Candidates of a vector from which on the whole block is scored in float32: many rows alike, as duplicates are."""


def bf16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class NearestRows:
    """A codebook prepared for being searched."""

    def __init__(self, codebook_Vd: Tensor, *, short_list: bool | None = None) -> None:
        """Prepare float32 rows.

        Args:
            codebook_Vd: the rows.
            short_list: whether products are made in bfloat16; None where that pays.
        """
        self.codebook_Vd = codebook_Vd.float().contiguous()
        # Distances are the same seen from anywhere; from the middle of the rows, products are smallest and err least.
        self._middle_d = self.codebook_Vd.mean(0)
        self._rows_Vd = self.codebook_Vd - self._middle_d
        self._half_V = self._rows_Vd.square().sum(1) / 2
        self.short_list = bf16_is_fast() and len(codebook_Vd) >= _FEWEST_ROWS if short_list is None else short_list
        if self.short_list:
            self._prepare()

    def _prepare(self) -> None:
        """Rows in order of length, a group of neighbours in that order spread over columns that lie g apart."""
        rows = len(self.codebook_Vd)
        self._groups = -(-rows // _GROUP)
        lengths_V = self._rows_Vd.norm(dim=1)
        order = lengths_V.argsort(stable=True)
        # The last group is filled up with rows that no vector is near; -1 marks them.
        filled = self._groups * _GROUP - rows
        order = torch.cat([order, order.new_full((filled,), -1)])
        self._row_of = order.view(self._groups, _GROUP).T.reshape(-1)
        rows_Vd = torch.where((self._row_of >= 0)[:, None], self._rows_Vd[self._row_of], 0.0)
        bias_V = torch.where(self._row_of >= 0, -self._half_V[self._row_of], _NEVER)
        rounded_Vd = rows_Vd.bfloat16()
        high_V = bias_V.bfloat16()
        low_V = (bias_V - high_V.float()).bfloat16()
        self._product_Ve = torch.cat([rounded_Vd, high_V[:, None], low_V[:, None]], dim=1)
        length_g = self._group_max(rows_Vd.norm(dim=1))
        error_g = self._group_max((rows_Vd - rounded_Vd.float()).norm(dim=1))
        # |x - x̃| ≤ u |x|, hence |x̃| ≤ (1 + u) |x|: the bound is a multiple of |x|.
        self._error_of_length_g = _UNIT * length_g + (1 + _UNIT) * error_g
        self._bias_error_g = self._group_max((bias_V - high_V.float() - low_V.float()).abs())

    def _group_max(self, values_V: Tensor) -> Tensor:
        return values_V.view(_GROUP, self._groups).amax(0)

    def _scores(self, centred_nd: Tensor) -> Tensor:
        """x·c - |c|²/2 of every pair [n, V] in float32: the obvious way."""
        return torch.addmm(-self._half_V, centred_nd, self._rows_Vd.T)

    @torch.inference_mode()
    def nearest(self, vectors_nd: Tensor) -> Tensor:
        """Index [n] of the nearest row; among equally near ones the lowest."""
        centred_nd = vectors_nd - self._middle_d
        found = self._candidates(centred_nd, None, 1) if self.short_list else None
        if found is None:
            return self._scores(centred_nd).argmax(dim=1)
        vector_m, row_m = found
        # Most vectors have a single candidate, and need no exact score.
        alone_m = torch.ones(len(vector_m), dtype=torch.bool)
        again = vector_m[1:] == vector_m[:-1]
        alone_m[1:] &= ~again
        alone_m[:-1] &= ~again
        nearest_n = torch.empty(len(vectors_nd), dtype=torch.int64)
        nearest_n[vector_m[alone_m]] = row_m[alone_m]
        vector_m, row_m = vector_m[~alone_m], row_m[~alone_m]
        score_m = self._exact(centred_nd, vector_m, row_m)
        best_n = torch.full((len(vectors_nd),), -torch.inf).scatter_reduce_(0, vector_m, score_m, "amax")
        won_m = score_m == best_n[vector_m]
        none = len(self._rows_Vd)
        contested_n = nearest_n.new_full((len(vectors_nd),), none)
        contested_n.scatter_reduce_(0, vector_m[won_m], row_m[won_m], "amin")
        return torch.where(contested_n == none, nearest_n, contested_n)

    @torch.inference_mode()
    def best_continuations(self, residuals_nbd: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The `width` nearest pairs (partial tuple, row) of each vector, in no order; of equal ones the first.

        Args:
            residuals_nbd: what each of a vector's partial tuples leaves over.
            width: at most the number of pairs, b × V.

        Returns:
            Partial tuple [n, width], row [n, width].
        """
        (n, beams, d), rows = residuals_nbd.shape, len(self._rows_Vd)
        centred_xd = residuals_nbd.reshape(n * beams, d) - self._middle_d
        energy_nb = centred_xd.square().sum(1).view(n, beams) / 2
        pair_nk = self._short_list(centred_xd, energy_nb, width) if self.short_list else None
        if pair_nk is None:
            score_nX = (self._scores(centred_xd) - energy_nb.reshape(-1, 1)).view(n, beams * rows)
            pair_nk = _best(torch.arange(beams * rows).expand_as(score_nX), score_nX, width)
        return pair_nk.div(rows, rounding_mode="floor"), pair_nk % rows

    def _short_list(self, centred_xd: Tensor, energy_nb: Tensor, width: int) -> Tensor | None:
        """The best pairs [n, width]; None where too many are near one another."""
        n, beams = energy_nb.shape
        found = self._candidates(centred_xd, -energy_nb, width)
        if found is None:
            return None
        vector_m, row_m = found
        of_m = vector_m.div(beams, rounding_mode="floor")
        pair_m = vector_m % beams * len(self._rows_Vd) + row_m
        counts_n = torch.bincount(of_m, minlength=n)
        longest = int(counts_n.max())
        if longest > max(_LONGEST_LIST, 4 * width):
            return None
        # A vector with as many candidates as are wanted needs no exact scores.
        open_n = counts_n > width
        open_m = open_n[of_m]
        pair_nk = pair_m.new_empty(n, width)
        pair_nk[~open_n] = pair_m[~open_m].view(-1, width)
        if open_n.any():
            vector_m, row_m, of_m, pair_m = vector_m[open_m], row_m[open_m], of_m[open_m], pair_m[open_m]
            score_m = self._exact(centred_xd, vector_m, row_m) - energy_nb.flatten()[vector_m]
            counts_o = counts_n[open_n]
            line_m = (open_n.cumsum(0) - 1)[of_m]
            place_m = torch.arange(len(of_m)) - (counts_o.cumsum(0) - counts_o)[line_m]
            scores_ok = torch.full((len(counts_o), longest), -torch.inf)
            pairs_ok = torch.zeros(len(counts_o), longest, dtype=torch.int64)
            scores_ok[line_m, place_m] = score_m
            pairs_ok[line_m, place_m] = pair_m
            pair_nk[open_n] = _best(pairs_ok, scores_ok, width)
        return pair_nk

    def _exact(self, centred_nd: Tensor, vector_m: Tensor, row_m: Tensor) -> Tensor:
        """float32 scores of pairs; a sum over one row, so that it does not depend on what else is in the block."""
        product_md = centred_nd.index_select(0, vector_m).mul_(self._rows_Vd.index_select(0, row_m))
        return product_md.sum(1).sub_(self._half_V.index_select(0, row_m))

    def _candidates(self, flat_xd: Tensor, offset_nb: Tensor | None, width: int) -> tuple[Tensor, Tensor] | None:
        """Pairs (index into flat_xd, row), ascending by the first, that hold the `width` highest scores of each vector.

        None where there are none to compare, or so many that to score all pairs is less work.

        Args:
            flat_xd: vectors, b for each of n.
            offset_nb: added to all scores of a vector; None where b is 1.
            width: b·V pairs have at least so many; groups may be fewer, then all are candidates.
        """
        n, beams = (len(flat_xd), 1) if offset_nb is None else offset_nb.shape
        if n == 0:
            return None
        score_xGg = self._products(flat_xd)
        best_xg = score_xGg.amax(dim=1).float()
        error_xg = self._error(flat_xd, best_xg)
        least_xg = best_xg - error_xg
        # Groups differ, so the width-th best row is at least as good as the width-th best group's best row.
        if offset_nb is None and width == 1:
            needed_x1 = least_xg.amax(dim=1, keepdim=True)
        elif width <= beams * self._groups:
            offset_x1 = 0.0 if offset_nb is None else offset_nb.reshape(-1, 1)
            needed_n = _lower_bound((least_xg + offset_x1).view(n, -1), width)
            needed_x1 = needed_n.repeat_interleave(beams)[:, None] - offset_x1
        else:
            needed_x1 = torch.full((len(flat_xd), 1), -torch.inf)
        limit_xg = needed_x1 - error_xg
        place_m = (best_xg >= limit_xg).flatten().nonzero()[:, 0]
        if len(place_m) > n * max(_LONGEST_LIST // _GROUP, 2 * width):
            return None
        index_m = place_m.div(self._groups, rounding_mode="floor")
        group_m = place_m - index_m * self._groups
        kept = score_xGg[index_m, :, group_m].float() >= limit_xg.flatten()[place_m][:, None]
        found_m = kept.flatten().nonzero()[:, 0]
        of_m = found_m >> _GROUP_BITS
        vector_m = index_m[of_m]
        row_m = self._row_of[(found_m & (_GROUP - 1)) * self._groups + group_m[of_m]]
        if width > beams * self._groups:  # then even rows that are none were kept
            vector_m, row_m = vector_m[row_m >= 0], row_m[row_m >= 0]
        return vector_m, row_m

    def _products(self, flat_xd: Tensor) -> Tensor:
        """Scores [x, G, g] in bfloat16."""
        rounded_xe = flat_xd.new_ones(len(flat_xd), flat_xd.size(1) + _BIAS_COLUMNS, dtype=torch.bfloat16)
        rounded_xe[:, : flat_xd.size(1)] = flat_xd
        return (rounded_xe @ self._product_Ve.T).view(len(flat_xd), _GROUP, self._groups)

    def _error(self, flat_xd: Tensor, best_xg: Tensor) -> Tensor:
        """Bound [x, g] on how far a group's scores lie from the exact ones."""
        length_x1 = torch.linalg.vector_norm(flat_xd, dim=1, keepdim=True)
        error_xg = torch.addmm(self._bias_error_g, length_x1, self._error_of_length_g[None])
        return error_xg.add_(best_xg.abs(), alpha=_ROUNDING)


def _lower_bound(values_nX: Tensor, width: int) -> Tensor:
    """A number [n] that at least `width` of a row's values reach; near the width-th highest, and quick to find."""
    columns = values_nX.size(1)
    if columns % 8 == 0 and columns // 8 >= 4 * width:
        values_nX = values_nX.view(len(values_nX), 8, -1).amax(dim=1)  # the highest of eight columns each
    return values_nX.topk(width, dim=1).values[:, -1]


def _best(pair_nk: Tensor, score_nk: Tensor, width: int) -> Tensor:
    """The `width` best pairs [n, width] of each row; of equal scores the lowest pairs."""
    assert score_nk.size(1) >= width, (score_nk.shape, width)
    best_nk = score_nk.topk(min(width + 1, score_nk.size(1)), dim=1)
    chosen_nk = best_nk.indices[:, :width]
    if best_nk.values.size(1) > width:
        # topk does not say which of equal scores it leaves out.
        tied_n = best_nk.values[:, -1] == best_nk.values[:, -2]
        if tied_n.any():
            by_pair = pair_nk[tied_n].argsort(dim=1, stable=True)
            order = score_nk[tied_n].gather(1, by_pair).argsort(dim=1, stable=True, descending=True)[:, :width]
            chosen_nk[tied_n] = by_pair.gather(1, order)
    return pair_nk.gather(1, chosen_nk)


def vectors_of_a_block(codes: int, beams: int, bytes_at_once: int = 4 << 20) -> int:
    """Vectors whose scores fill a block that stays in a processor's cache."""
    return max(256, 1 << int(math.log2(max(1, bytes_at_once // (2 * codes * beams)))))
