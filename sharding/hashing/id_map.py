"""Which row of a table belongs to which id, while ids come and go: zero-collision hashing.

A map has buckets, and an id belongs to one by its hash. In its bucket an id owns a row alone, or it reads the bucket's
last row, which all ids without one share. Every `interval` training steps rows are handed out anew: an id looked up
since then takes a free row, or that of an id with a lower score than its own.

It takes the place of TorchRec's MCHManagedCollisionModule, of whose decisions it is held to be the same, and differs in
what that leaves to chance: buckets do not depend on the number of ranks, an id counts once a step however many ranks
ask for it, nothing is forgotten of a batch larger than the first, and the state is whole, so that a run goes on as if
it had not stopped.

Shapes: R rows of this rank · G its buckets · S rows a bucket · n ids · m newcomers · k buckets that change.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchrec.modules.mc_modules import ManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor

from model.hashing_config import HashingConfig
from sharding.hashing.id_hash import scatter_ids, shift_right

FREE = torch.iinfo(torch.int64).max
"""In the place of an id: the row has no owner. An id of that very hash never gets a row."""

_ROWS_AT_ONCE = 2**17


class IdMap(ManagedCollisionModule):
    """The map of the rows first_row … first_row + rows - 1 of a table, as TorchRec calls it.

    Attributes:
        rules: of the whole table.
        ids_GS: int64, hash of the row's owner or FREE; the last row of a bucket is always FREE.
        counts_GS: int32, steps that looked the owner up.
        last_GS: int32, the last of them.
        step: training steps seen.
    """

    ids_GS: Tensor
    counts_GS: Tensor
    last_GS: Tensor
    _sorted_GS: Tensor
    _order_GS: Tensor

    def __init__(self, rules: HashingConfig, device: torch.device, first_row: int = 0, rows: int = 0) -> None:
        """All rows are free."""
        rows = rows or rules.rows
        self.rules, self.first_row, self.bucket_rows = rules, first_row, rules.rows // rules.buckets
        assert first_row % self.bucket_rows == rows % self.bucket_rows == 0, (first_row, rows, self.bucket_rows)
        super().__init__(device, output_segments=[first_row, first_row + rows])
        shape = (rows // self.bucket_rows, self.bucket_rows)
        # None is part of a state_dict: that must be alike on all ranks. `state` is there instead.
        self._non_persistent_buffers_set.update(self._buffers)
        for name, value, dtype in (
            ("ids_GS", FREE, torch.int64),
            ("counts_GS", 0, torch.int32),
            ("last_GS", 0, torch.int32),
            ("_sorted_GS", FREE, torch.int64),
        ):
            self.register_buffer(name, torch.full(shape, value, dtype=dtype, device=device), persistent=False)
        order_S = torch.arange(shape[1], dtype=torch.int32, device=device)
        self.register_buffer("_order_GS", order_S.expand(shape).contiguous(), persistent=False)
        self.step = 0
        self._history: list[tuple[int, Tensor]] = []
        self._given: Tensor | None = None

    # What TorchRec asks of a map.

    def preprocess(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Hashes in the place of ids; hash mod buckets is the bucket, by which TorchRec finds the rank."""
        return {name: _with_values(jagged, scatter_ids(jagged.values())) for name, jagged in features.items()}

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """In training, count a step's ids, and at the end of an interval hand out rows."""
        if self.training:
            found_n = torch.unique(torch.cat([jagged.values() for jagged in features.values()]))
            self.step += 1
            self._history.append((self.step, found_n[found_n != FREE]))
            if self.step % self.rules.interval == 0:
                self._hand_out()
        return features

    def remap(
        self,
        features: dict[str, JaggedTensor],
        mutate_miss_lengths: bool = True,  # noqa: ARG002 (TorchRec's)
        write_weights: Tensor | None = None,  # noqa: ARG002
    ) -> dict[str, JaggedTensor]:
        """Rows of the whole table in the place of hashes."""
        remapped = {}
        for name, jagged in features.items():
            rows_n, shared_n = self.find(jagged.values())
            rows_n = torch.where(rows_n < 0, shared_n, rows_n) + self.first_row
            remapped[name] = _with_values(jagged, rows_n)
        return remapped

    def forward(
        self,
        features: dict[str, JaggedTensor],
        mutate_miss_lengths: bool = True,  # noqa: ARG002
    ) -> dict[str, JaggedTensor]:
        """All three."""
        return self.remap(self.profile(self.preprocess(features)))

    def evict(self) -> Tensor | None:
        """Rows of the whole table, int64, that have got another owner since the last call; None if none has."""
        given, self._given = self._given, None
        return given

    def output_size(self) -> int:
        """Rows."""
        return self.ids_GS.numel()

    def input_size(self) -> int:
        """0: any int64 may come, and goes to a rank by its remainder."""
        return 0

    def buckets(self) -> int:
        """Of the whole table."""
        return self.rules.buckets

    def validate_state(self) -> None:
        """Called when a state_dict has been loaded, of which this is no part."""

    def open_slots(self) -> Tensor:
        """Rows without an owner, [1], the shared ones not counted."""
        return (self.ids_GS[:, :-1] == FREE).sum().reshape(1)

    def rebuild_with_output_id_range(
        self,
        output_id_range: tuple[int, int],
        output_segments: list[int],  # noqa: ARG002
        device: torch.device | None = None,
    ) -> IdMap:
        """The map of some of the rows, all free: what a rank makes of the whole."""
        first, end = output_id_range
        return IdMap(self.rules, device or self.device, first, end - first)

    # What it does.

    def find(self, hashes_n: Tensor) -> tuple[Tensor, Tensor]:
        """(row on this rank that a hash owns or -1, row that it reads without one), int64."""
        starts_n = self._bucket(hashes_n) * self.bucket_rows
        low_n = torch.zeros_like(hashes_n)
        high_n = torch.full_like(hashes_n, self.bucket_rows - 1)
        ids_R, order_R = self._sorted_GS.view(-1), self._order_GS.view(-1)
        for _ in range((self.bucket_rows - 1).bit_length()):
            middle_n = (low_n + high_n) >> 1
            is_lower_n = ids_R.index_select(0, starts_n + middle_n) < hashes_n
            low_n = torch.where(is_lower_n, middle_n + 1, low_n)
            high_n = torch.where(is_lower_n, high_n, middle_n)
        places_n = starts_n + low_n
        owns_n = (ids_R.index_select(0, places_n) == hashes_n) & (hashes_n != FREE)
        rows_n = starts_n + order_R.index_select(0, places_n)
        return torch.where(owns_n, rows_n, -1), starts_n + self.bucket_rows - 1

    def _bucket(self, hashes_n: Tensor) -> Tensor:
        """Its bucket's number on this rank. FBGEMM takes the remainder of the hash as a number without a sign."""
        buckets = self.rules.buckets
        of_table_n = torch.where(hashes_n < 0, hashes_n % buckets + 2**64 % buckets, hashes_n % buckets) % buckets
        return of_table_n - self.first_row // self.bucket_rows

    def _hand_out(self) -> None:
        """The end of an interval: old owners are counted, newcomers get rows, the history begins anew."""
        found_n, counts_n, last_n = self._counted_history()
        self._history = []
        rows_n, _ = self.find(found_n)
        old_n = rows_n >= 0
        self.counts_GS.view(-1)[rows_n[old_n]] += counts_n[old_n]
        self.last_GS.view(-1)[rows_n[old_n]] = last_n[old_n]
        new_n = ~old_n & self._admitted(found_n, counts_n)
        if new_n.any():
            self._place(found_n[new_n], counts_n[new_n], last_n[new_n])

    def _counted_history(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hashes of the interval in ascending order, int64, in how many steps they were, and the last, int32."""
        ids_h = torch.cat([ids_n for _, ids_n in self._history])
        steps_h = torch.cat([torch.full_like(ids_n, step, dtype=torch.int32) for step, ids_n in self._history])
        found_n, inverse_h, counts_n = torch.unique(ids_h, return_inverse=True, return_counts=True)
        last_n = torch.zeros_like(found_n, dtype=torch.int32)
        return found_n, counts_n.int(), last_n.scatter_reduce_(0, inverse_h, steps_h, "amax")

    def _admitted(self, found_n: Tensor, counts_n: Tensor) -> Tensor:
        rules = self.rules
        if rules.admission == "count":
            return counts_n >= rules.threshold
        if rules.admission == "average":
            bucket_n = self._bucket(found_n)
            ids_G = torch.bincount(bucket_n, minlength=len(self.ids_GS))
            sums_G = torch.bincount(bucket_n, counts_n.double(), minlength=len(self.ids_GS))
            return counts_n > rules.threshold * (sums_G / ids_G)[bucket_n]
        if rules.admission == "probabilistic":
            # Drawn from the hash and the step: the same on any number of ranks, and without a generator's state.
            drawn_n = shift_right(scatter_ids(found_n + self.step), 11).double() / 2**53
            return drawn_n < 1 - (1 - rules.threshold) ** counts_n.double()
        return torch.ones_like(found_n, dtype=torch.bool)

    def _scores(self, counts: Tensor, last: Tensor) -> Tensor:
        """float64; the lowest loses its row."""
        if self.rules.eviction == "lfu":
            return counts.double()
        if self.rules.eviction == "lru":
            return last.double()
        ages = (self.step - last + 1).double()
        return counts / (ages if self.rules.decay == 1 else ages**self.rules.decay)

    def _place(self, ids_m: Tensor, counts_m: Tensor, last_m: Tensor) -> None:
        """The best newcomer of a bucket takes the row of its worst owner if it is better, the second of the second, …

        Between equals the owner stays.
        """
        scores_m, bucket_m = self._scores(counts_m, last_m), self._bucket(ids_m)
        order_m = torch.argsort(counts_m, descending=True, stable=True)
        order_m = order_m[torch.argsort(scores_m[order_m], descending=True, stable=True)]
        order_m = order_m[torch.argsort(bucket_m[order_m], stable=True)]
        changed_k, which_m, sizes_k = torch.unique_consecutive(
            bucket_m[order_m], return_inverse=True, return_counts=True
        )
        place_m = torch.arange(len(ids_m), device=ids_m.device) - (sizes_k.cumsum(0) - sizes_k)[which_m]
        fits_m = place_m < self.bucket_rows - 1
        order_m, which_m, place_m = order_m[fits_m], which_m[fits_m], place_m[fits_m]
        rows_km, worst_km = self._worst(changed_k, min(int(sizes_k.max()), self.bucket_rows - 1))
        wins_m = scores_m[order_m] > worst_km[which_m, place_m]
        order_m, which_m, place_m = order_m[wins_m], which_m[wins_m], place_m[wins_m]
        rows_m = changed_k[which_m] * self.bucket_rows + rows_km[which_m, place_m]
        for of_rows, of_newcomers in ((self.ids_GS, ids_m), (self.counts_GS, counts_m), (self.last_GS, last_m)):
            of_rows.view(-1)[rows_m] = of_newcomers[order_m]
        self._sort(changed_k)
        given_m = rows_m + self.first_row
        self._given = given_m if self._given is None else torch.unique(torch.cat([self._given, given_m]))

    def _worst(self, changed_k: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """The `most` worst rows of each of some buckets, the worst first, and their scores, [k, most]; -∞ is free.

        Scores are not negative, so their bits, read as a whole number, are in the same order; the last of them give way
        to a row's place by hash, so that equals have an order, whatever way the selection goes.
        """
        ties = 2 ** self.bucket_rows.bit_length() - 1
        from_end_S = torch.arange(self.bucket_rows - 2, -1, -1, device=self.device)
        rows, scores = [], []
        for part_k in self._parts(changed_k):
            order_kS = self._order_GS[part_k, :-1].long()  # by hash, the free ones last; the shared row left out
            counts_kS = self.counts_GS[part_k].gather(1, order_kS)
            scores_kS = self._scores(counts_kS, self.last_GS[part_k].gather(1, order_kS))
            scores_kS.masked_fill_(self._sorted_GS[part_k, :-1] == FREE, -torch.inf)
            keys_kS = (scores_kS.view(torch.int64) & ~ties) | from_end_S
            places_km = keys_kS.topk(most, dim=1, largest=False).indices
            rows.append(order_kS.gather(1, places_km))
            scores.append(scores_kS.gather(1, places_km))
        return torch.cat(rows), torch.cat(scores)

    def _sort(self, changed_k: Tensor) -> None:
        """Make the index of some buckets anew, from what it was: what is nearly sorted takes half the time."""
        for part_k in self._parts(changed_k):
            order_kS = self._order_GS[part_k].long()
            sorted_kS, moved_kS = torch.sort(self.ids_GS[part_k].gather(1, order_kS), dim=1, stable=True)
            self._sorted_GS[part_k], self._order_GS[part_k] = sorted_kS, order_kS.gather(1, moved_kS).int()

    def _parts(self, changed_k: Tensor) -> tuple[Tensor, ...]:
        """Buckets that fit into a processor's cache together."""
        parts: tuple[Tensor, ...] = changed_k.split(max(1, _ROWS_AT_ONCE // self.bucket_rows))
        return parts

    # Its state.

    def state(self) -> dict[str, Tensor]:
        """All of it, as tensors of this rank; rows are live, so that who keeps them must copy."""
        nothing = self.ids_GS.new_empty(0)
        ids = [ids_n for _, ids_n in self._history]
        steps = [torch.full_like(ids_n, step) for step, ids_n in self._history]
        return {
            "first_row": torch.tensor(self.first_row),
            "step": torch.tensor(self.step),
            "ids": self.ids_GS.view(-1),
            "counts": self.counts_GS.view(-1),
            "last": self.last_GS.view(-1),
            "history_ids": torch.cat([nothing, *ids]),
            "history_steps": torch.cat([nothing, *steps]),
        }

    def load(self, pieces: list[dict[str, Tensor]]) -> None:
        """Take over the `state` of all ranks, however many there were. Rows and buckets must be the same, no more."""
        mine = {"ids": self.ids_GS, "counts": self.counts_GS, "last": self.last_GS}
        first, end, filled = self.first_row, self.first_row + self.output_size(), 0
        for piece in pieces:
            begin = int(piece["first_row"])
            low, high = max(first, begin), min(end, begin + len(piece["ids"]))
            for name, rows_GS in mine.items():
                if low < high:
                    rows_GS.view(-1)[low - first : high - first] = piece[name][low - begin : high - begin].to(
                        self.device
                    )
            filled += max(high - low, 0)
        assert filled == self.output_size(), (filled, self.output_size())
        self.step = int(pieces[0]["step"])
        self._sort(torch.arange(len(self.ids_GS), device=self.device))
        self._given, self._history = None, []
        ids_h = torch.cat([piece["history_ids"] for piece in pieces]).to(self.device)
        steps_h = torch.cat([piece["history_steps"] for piece in pieces])
        bucket_h = self._bucket(ids_h)
        is_mine_h = (bucket_h >= 0) & (bucket_h < len(self.ids_GS))
        for step in steps_h.unique().tolist():
            self._history.append((step, ids_h[is_mine_h & (steps_h == step).to(self.device)].sort().values))


def _with_values(jagged: JaggedTensor, values_n: Tensor) -> JaggedTensor:
    return JaggedTensor(
        values=values_n, lengths=jagged.lengths(), offsets=jagged.offsets(), weights=jagged.weights_or_none()
    )
