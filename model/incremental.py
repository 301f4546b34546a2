"""The forward of a model that has read a part of its tokens before: M-FALCON (HSTU paper, §3.4, Appendix H).

A user's history is read once; of each block its keys and values are kept, a `Past`. What comes later is read by two
operations. `encode_more` reads more of the history, causally, and gives a longer past. `encode_candidates` reads tokens
of which each stands alone behind the past, and leaves the past as it is. Both give what a forward over the whole
sequence would give for these tokens.

What changes with time cannot be kept. With `biases.time_reference=next` a token's clock is the time of what comes next,
which of the newest token nobody knows before the request: it is read with `keep=False` at each request, and for good
when its follower is known (`newest_waits`).

Blocks are opened and closed by the code that trains them (`model.hstu`, `model.transformer`). Nothing here is
differentiable.

Shapes: B users · L tokens of all users, without padding · M candidates of all users · m candidates of a user in a
microbatch · l tokens whose outputs are wanted · D width · H heads · n tokens of a user's past.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from data.batches import Batch
from model.attention.jagged_memory import Scratch
from model.attention.weighting import Weighting
from model.biases import Tokens, describe_tokens
from model.config import ModelConfig
from model.hstu import HSTUBlock
from model.layers import Opened, gather, score_scale
from model.past import Past
from model.past_attention import attend_alone, attend_newest, pair_biases
from model.recommender import Recommender, Tower
from model.transformer import Rotation, TransformerBlock

Block = HSTUBlock | TransformerBlock


def newest_waits(cfg: ModelConfig) -> bool:
    """Whether a token can only be read for good when the time of the next one is known."""
    return cfg.biases.time and cfg.biases.time_reference == "next"


def token_bytes(cfg: ModelConfig) -> int:
    """Bytes of a past for each token that it has memory for, blocks · heads · (E + F) · 4 + 24; in bf16 · 2 instead."""
    width = 2 if cfg.precision == "bf16" else 4
    return cfg.blocks * cfg.heads * (cfg.head_dim_qk + cfg.head_dim_v) * width + 24


@torch.no_grad()
def embed(model: Recommender, batch: Batch) -> tuple[Tensor, Tokens]:
    """Vectors [L, D] of a batch's tokens, as its encoder is given them but for places, and what biases ask of them."""
    tower = model.tower
    x_LD = tower.picked(tower.summed(*model.looked_up(batch), batch), batch.rows_L)
    tokens = describe_tokens(
        tower.cfg.biases,
        batch.offsets,
        batch.timestamps_L,
        batch.request_times_L,
        batch.durations_L,
        batch.organic_L,
    )
    return x_LD, tokens


@dataclass(frozen=True)
class _Asked:
    """A past as all candidates of one request see it.

    Args:
        bias_H1n: of each block, what is added to their scores with each key; None where nothing is.
    """

    past: Past
    bias_H1n: list[Tensor | None]


class Incremental:
    """Reads tokens behind what was read before.

    Token vectors are what `embed` makes of a batch, before places are added. `Tokens` are those of
    `model.biases.describe_tokens`, of some users' new tokens alone: where these stand follows from the pasts.

    Args:
        tower: in evaluation mode, on any device.
    """

    def __init__(self, tower: Tower) -> None:
        """Keeps the tower."""
        self.cfg, self.tower = tower.cfg, tower
        self.blocks = cast(list[Block], list(tower.encoder.blocks))

    @property
    def device(self) -> torch.device:
        """Where the tower is."""
        return next(self.tower.parameters()).device

    def empty_past(self) -> Past:
        """Of a user without a history."""
        return Past.empty(self.cfg.blocks, self.device)

    @torch.no_grad()
    def encode_more(
        self, x_LD: Tensor, tokens: Tokens, pasts: Sequence[Past], *, wanted: int | None = None, keep: bool = True
    ) -> tuple[Tensor, list[Past]]:
        """Read more of some histories: each token sees its user's past and the new tokens up to itself.

        Args:
            x_LD: vectors of the new tokens, user after user.
            tokens: of the same; any user may have none.
            pasts: of the same users, left as they are.
            wanted: of how many of each user's new tokens the outputs are wanted, the newest first of all; None: of
                all. The last block does for no others more than keys and values.
            keep: whether the longer pasts are to last; if not, each holds until it or the past that it continues is
                continued again.

        Returns:
            The encoder's outputs [l, D] of the wanted tokens, before the L2 norm, and the longer pasts.
        """
        assert not self.tower.training, "dropout would make what is kept a matter of chance"
        bounds = list(itertools.pairwise(tokens.offsets.tolist()))
        assert len(bounds) == len(pasts), (len(bounds), len(pasts))
        first_L = torch.tensor([past.length for past in pasts], dtype=torch.int64, device=x_LD.device)
        first_L = first_L.repeat_interleave(tokens.offsets.diff(), output_size=len(x_LD))
        tokens = dataclasses.replace(tokens, positions_L=tokens.positions_L + first_L)
        taken: set[int] = set()
        longer = [
            past.longer(tokens, start, stop, keep=keep, taken=taken) if stop > start else past
            for past, (start, stop) in zip(pasts, bounds, strict=True)
        ]
        x_LD = self._enter(x_LD, tokens.positions_L)
        if not len(x_LD):
            return x_LD, longer
        last = [(max(start, stop - len(x_LD) if wanted is None else stop - wanted), stop) for start, stop in bounds]
        rotation, scratch = self.tower.encoder.rotation(tokens.positions_L, x_LD.dtype), Scratch(x_LD.device)
        with self._precision(x_LD):
            for number, block in enumerate(self.blocks):
                opened = block.open(x_LD, rotation)
                for past, (start, stop) in zip(longer, bounds, strict=True):
                    if stop > start:
                        past.memory.write(
                            number, past.length - (stop - start), opened.k_LHE[start:stop], opened.v_LHF[start:stop]
                        )
                asked = last if block is self.blocks[-1] else bounds
                if asked == bounds and not first_L.any():
                    gathered_LHF = self._gather(block, opened, tokens, x_LD.dtype)
                else:
                    x_LD, opened = _rows(x_LD, opened, asked) if asked != bounds else (x_LD, opened)
                    gathered_LHF = self._gather_behind(
                        block, number, opened, tokens, asked, longer, x_LD.dtype, scratch
                    )
                x_LD = block.close(x_LD, gathered_LHF, opened)
            x_LD = self.tower.encoder.end(x_LD)
        return x_LD, longer

    @torch.no_grad()
    def encode_candidates(self, x_MD: Tensor, tokens: Tokens, pasts: Sequence[Past], microbatch: int) -> Tensor:
        """Read candidates, each as if it alone came after its user's past.

        Args:
            x_MD: vectors of the candidates, user after user.
            tokens: of the same; the query clocks of a user's candidates are all that of the request.
            pasts: of the same users, left as they are.
            microbatch: how many candidates, of however many users, go through the model at once; what comes out does
                not depend on it. Memory grows by a few dozen vectors of width D with each of these; of all M there are
                the vectors given and those returned.

        Returns:
            The encoder's outputs [M, D], before the L2 norm.
        """
        assert not self.tower.training, "no candidate would be scored like another"
        assert microbatch >= 1, microbatch
        bounds = list(itertools.pairwise(tokens.offsets.tolist()))
        asked = [self._ask(past, tokens, *own) for past, own in zip(pasts, bounds, strict=True)]
        out_MD, scratch = torch.empty_like(x_MD), Scratch(x_MD.device)
        place_M = torch.tensor([past.length for past in pasts], dtype=torch.int64, device=x_MD.device)
        place_M = place_M.repeat_interleave(tokens.offsets.diff(), output_size=len(x_MD))
        for start in range(0, len(x_MD), microbatch):
            part = slice(start, min(start + microbatch, len(x_MD)))
            users = [
                (one, max(first, part.start) - part.start, min(end, part.stop) - part.start)
                for one, (first, end) in zip(asked, bounds, strict=True)
                if max(first, part.start) < min(end, part.stop)
            ]
            out_MD[part] = self._microbatch(x_MD[part], _cut(tokens, part, place_M[part]), users, scratch)
        return out_MD

    # ── what all tokens go through ──────────────────────────────────────────────────────────────────────────

    def _enter(self, x_LD: Tensor, positions_L: Tensor) -> Tensor:
        """From the embeddings to the first block."""
        return x_LD if self.tower.places is None else x_LD + self.tower.places.at(positions_L)

    def _precision(self, x_LD: Tensor) -> torch.autocast:
        return torch.autocast(x_LD.device.type, torch.bfloat16, enabled=self.cfg.precision == "bf16")

    def _weighting(self, block: Block, positions_L: Tensor, dtype: torch.dtype) -> Weighting:
        options = self.cfg.attention
        normaliser_L = block.normaliser(positions_L, dtype)
        return Weighting(options.kind, score_scale(self.cfg), normaliser_L, options.soft_cap, None)

    # ── more of a history ───────────────────────────────────────────────────────────────────────────────────

    def _gather(self, block: Block, opened: Opened, tokens: Tokens, dtype: torch.dtype) -> Tensor:
        """[L, H, F] where nothing is past: the attention of training."""
        biases, normaliser_L = block.score_biases(tokens), block.normaliser(tokens.positions_L, dtype)
        q_LHE, k_LHE, v_LHF = opened.q_LHE, opened.k_LHE, opened.v_LHF
        return gather(self.cfg, q_LHE, k_LHE, v_LHF, tokens, biases, normaliser_L, training=False)

    def _gather_behind(
        self,
        block: Block,
        number: int,
        opened: Opened,
        tokens: Tokens,
        asked: list[tuple[int, int]],
        longer: list[Past],
        dtype: torch.dtype,
        scratch: Scratch,
    ) -> Tensor:
        """[l, H, F] of the tokens `asked` of each user, whose keys and values are in the pasts already."""
        parts, begin = [opened.v_LHF[:0]], 0
        for past, (start, stop) in zip(longer, asked, strict=True):
            if start == stop:
                continue
            rows = slice(begin, begin + stop - start)
            own = Opened(opened.q_LHE[rows], opened.k_LHE[rows], opened.v_LHF[rows])
            biases = block.score_biases(past.as_keys())
            weighting = self._weighting(block, tokens.positions_L[start:stop], dtype)
            times_q = tokens.query_times_L[start:stop]
            keys, values = past.keys(number), past.values(number)
            parts.append(attend_newest(own, keys, values, biases, times_q, weighting, scratch))
            begin = rows.stop
        return torch.cat(parts)

    # ── candidates ──────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, past: Past, tokens: Tokens, start: int, stop: int) -> _Asked:
        """What is the same for all candidates of a user."""
        if start == stop or not past.length:
            return _Asked(past, [None] * len(self.blocks))
        times_m = tokens.query_times_L[start:stop]
        assert (times_m == times_m[0]).all(), "candidates of one request have one clock"
        keys, dtype = past.as_keys(), torch.promote_types(past.values(0).dtype, torch.float32)
        distance_1n = past.length - keys.positions_L[None]
        return _Asked(
            past, [pair_biases(block.score_biases(keys), distance_1n, times_m[:1], dtype) for block in self.blocks]
        )

    def _microbatch(
        self, x_mD: Tensor, tokens: Tokens, users: list[tuple[_Asked, int, int]], scratch: Scratch
    ) -> Tensor:
        x_mD = self._enter(x_mD, tokens.positions_L)
        rotation: Rotation | None = self.tower.encoder.rotation(tokens.positions_L, x_mD.dtype)
        with self._precision(x_mD):
            for number, block in enumerate(self.blocks):
                opened = block.open(x_mD, rotation)
                gathered = list(self._alone(block, number, opened, tokens, users, x_mD.dtype, scratch))
                x_mD = block.close(x_mD, gathered[0] if len(gathered) == 1 else torch.cat(gathered), opened)
            out_mD: Tensor = self.tower.encoder.end(x_mD)
        return out_mD

    def _alone(
        self,
        block: Block,
        number: int,
        opened: Opened,
        tokens: Tokens,
        users: list[tuple[_Asked, int, int]],
        dtype: torch.dtype,
        scratch: Scratch,
    ) -> Iterator[Tensor]:
        """[m, H, F] of one user after another."""
        wide = torch.promote_types(opened.q_LHE.dtype, torch.float32)
        own_bias_mH = block.score_biases(tokens).own_bias_LH(len(tokens.positions_L), wide)
        for asked, start, stop in users:
            rows = slice(start, stop)
            own = Opened(opened.q_LHE[rows], opened.k_LHE[rows], opened.v_LHF[rows])
            past = asked.past
            keys = past.keys(number) if past.length else own.k_LHE.transpose(0, 1)[:, :0]
            values = past.values(number) if past.length else own.v_LHF.transpose(0, 1)[:, :0]
            own_mH = None if own_bias_mH is None else own_bias_mH[rows]
            weighting = self._weighting(block, tokens.positions_L[rows], dtype)
            yield attend_alone(own, keys, values, asked.bias_H1n[number], own_mH, weighting, scratch)


def _rows(x_LD: Tensor, opened: Opened, asked: list[tuple[int, int]]) -> tuple[Tensor, Opened]:
    """Of some tokens of each user alone."""
    rows_l = torch.cat([torch.arange(start, stop, device=x_LD.device) for start, stop in asked])
    return x_LD.index_select(0, rows_l), opened.rows(rows_l)


def _cut(tokens: Tokens, part: slice, places_m: Tensor) -> Tokens:
    """A microbatch of candidates, at the places where they stand."""
    return Tokens(
        offsets=torch.tensor([0, len(places_m)]),
        positions_L=places_m,
        query_times_L=tokens.query_times_L[part],
        key_times_L=tokens.key_times_L[part],
        duration_buckets_L=tokens.duration_buckets_L[part],
        organic_L=tokens.organic_L[part],
    )
