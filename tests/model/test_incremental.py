"""Tokens read behind a past against the same tokens in one forward over the whole sequence."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.biases import Tokens, describe_tokens
from model.config import AttentionConfig, BiasConfig, ModelConfig, TransformerConfig, Vocabulary
from model.incremental import Incremental, newest_waits, token_bytes
from model.layers import normalised
from model.past import Past
from model.recommender import Tower

VOCABULARY = Vocabulary(levels=2, codes=5, artists=3, event_types=2)
WIDTH = 6
SHAPE = {"width": WIDTH, "blocks": 2, "heads": 2, "head_dim_qk": 4, "head_dim_v": 3, "max_history": 20}
SMALL = {"time_buckets": 64, "duration_buckets": 6, "position_buckets": 5}


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Whatever a model may be made of that inference feels."""
    flag = st.booleans()
    architecture = draw(st.sampled_from(["hstu", "hstu", "hstu", "sasrec", "transformer++"]))
    common = {**SHAPE, "architecture": architecture, "qk_norm": draw(flag), "residual_scale": draw(flag)}
    soft_cap = draw(st.sampled_from([0.0, 0.8]))
    if architecture != "hstu":
        biases = BiasConfig(alibi=False, time=False, duration=False, organic=False)
        transformer = TransformerConfig(activation=draw(st.sampled_from(["relu", "gelu"])))
        attention = AttentionConfig(kind="softmax", scale="sqrt", soft_cap=soft_cap)
        return ModelConfig(**common, biases=biases, transformer=transformer, attention=attention)
    names = ("alibi", "time", "duration", "organic", "position")
    clock = draw(st.sampled_from(["next", "current"]))
    kind = draw(st.sampled_from(["silu", "softmax"]))
    normalise_by = draw(st.sampled_from(["max", "length"])) if kind == "silu" else "max"
    scale = draw(st.sampled_from(["none", "sqrt"]))
    return ModelConfig(
        **common,
        places=draw(flag),
        pooled_norm=draw(flag),
        gate=draw(flag),
        biases=BiasConfig(**{name: draw(flag) for name in names}, time_reference=clock, **SMALL),
        attention=AttentionConfig(kind=kind, normalise_by=normalise_by, scale=scale, soft_cap=soft_cap),
    )


def make(cfg: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tower:
    """A tower whose every parameter matters."""
    torch.manual_seed(seed)
    tower = Tower(cfg, VOCABULARY).to(dtype).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(std=0.7)
    return tower


@dataclasses.dataclass
class Sequence:
    """One user's tokens: vectors, and times, next times, durations, organic."""

    x_nD: Tensor
    notes_4n: Tensor

    def __len__(self) -> int:
        return len(self.x_nD)

    def __getitem__(self, part: slice | Tensor) -> Sequence:
        return Sequence(self.x_nD[part], self.notes_4n[:, part])

    def __add__(self, other: Sequence) -> Sequence:
        notes_4n = torch.cat((self.notes_4n, other.notes_4n), dim=1)
        if len(self) and len(other):
            notes_4n[1, len(self) - 1] = other.notes_4n[0, 0]
        return Sequence(torch.cat((self.x_nD, other.x_nD)), notes_4n)


def drawn(length: int, seed: int, dtype: torch.dtype = torch.float64, start: int = 1_000) -> Sequence:
    generator = torch.Generator().manual_seed(seed)
    x_nD = torch.randn(length, WIDTH, dtype=torch.float64, generator=generator).to(dtype)
    gaps = torch.randint(0, 500, (length + 1,), generator=generator) * torch.randint(
        0, 2, (length + 1,), generator=generator
    )
    times = start + gaps.cumsum(0)
    durations = torch.randint(-1, 300, (length,), generator=generator)
    organic = torch.randint(0, 3, (length,), generator=generator)
    return Sequence(x_nD, torch.stack((times[:-1], times[1:], durations, organic)))


def candidates_at(time: int, length: int, seed: int, dtype: torch.dtype = torch.float64) -> Sequence:
    found = drawn(length, seed, dtype)
    found.notes_4n[:2] = time
    return found


def described(cfg: ModelConfig, users: list[Sequence]) -> tuple[Tensor, Tokens]:
    offsets = torch.tensor([0, *map(len, users)]).cumsum(0)
    notes = torch.cat([user.notes_4n for user in users], dim=1)
    return torch.cat([user.x_nD for user in users]), describe_tokens(cfg.biases, offsets, *notes)


@torch.no_grad()
def whole(tower: Tower, sequence: Sequence) -> Tensor:
    """The oracle: the encoder over one user's whole sequence."""
    x_nD, tokens = described(tower.cfg, [sequence])
    if tower.places is not None:
        x_nD = x_nD + tower.places(tokens)
    found: Tensor = tower.encoder(x_nD, tokens)
    return found


def whole_with(tower: Tower, history: Sequence, candidates: Sequence) -> Tensor:
    """Each candidate alone behind the history."""
    alone = [whole(tower, history + candidates[i : i + 1])[-1:] for i in range(len(candidates))]
    return torch.cat([candidates.x_nD[:0], *alone])


def read(reader: Incremental, pasts: list[Past], users: list[Sequence], **how: Any) -> tuple[Tensor, list[Past]]:
    return reader.encode_more(*described(reader.cfg, users), pasts, **how)


def ask(reader: Incremental, pasts: list[Past], users: list[Sequence], microbatch: int = 100) -> Tensor:
    return reader.encode_candidates(*described(reader.cfg, users), pasts, microbatch)


def close(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(cfg=configs(), lengths=LENGTHS, cuts=st.lists(st.integers(0, 9), max_size=3), seed=st.integers(0, 99))
def test_reading_in_pieces_is_reading_at_once(cfg: ModelConfig, lengths: list[int], cuts: list[int], seed: int) -> None:
    """Every output of every piece, for users whose pieces are of different lengths."""
    reader = Incremental(make(cfg, seed))
    users = [drawn(length, seed + number) for number, length in enumerate(lengths)]
    pasts = [reader.empty_past() for _ in users]
    found: list[list[Tensor]] = [[] for _ in users]
    for start, stop in itertools.pairwise([0, *sorted(cuts), 9]):
        pieces = [user[start:stop] for user in users]
        out, pasts = read(reader, pasts, pieces)
        for parts, part in zip(found, out.split([len(piece) for piece in pieces]), strict=True):
            parts.append(part)
    for user, parts, past in zip(users, found, pasts, strict=True):
        assert past.length == len(user)
        close(torch.cat(parts), whole(reader.tower, user))


@settings(max_examples=60, deadline=None)
@given(
    cfg=configs(),
    lengths=LENGTHS,
    counts=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    microbatch=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_a_candidate_sees_what_it_would_see_alone(
    cfg: ModelConfig, lengths: list[int], counts: list[int], microbatch: int, seed: int
) -> None:
    reader = Incremental(make(cfg, seed))
    users = [drawn(length, seed + number) for number, length in enumerate(lengths)]
    wanted = [candidates_at(9_999, count, seed - 9) for count, _ in zip(counts, users, strict=False)]
    # The newest token's clock is the request's.
    for user in users:
        user.notes_4n[1, len(user) - 1 :] = 9_999
    _, pasts = read(reader, [reader.empty_past() for _ in users], users)
    got = ask(reader, pasts, wanted, microbatch)
    alone = [whole_with(reader.tower, user, own) for user, own in zip(users, wanted, strict=True)]
    close(got, torch.cat(alone))
    assert torch.equal(ask(reader, pasts, wanted, microbatch), got), "and the pasts are as they were"


@settings(max_examples=20, deadline=None)
@given(cfg=configs(), seed=st.integers(0, 99))
def test_in_single_precision_within_what_is_asked(cfg: ModelConfig, seed: int) -> None:
    tower = make(cfg, seed, torch.float32)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(0.3)
    reader = Incremental(tower)
    history, wanted = drawn(12, seed, torch.float32), candidates_at(9_999, 7, seed, torch.float32)
    history.notes_4n[1, -1] = 9_999
    _, pasts = read(reader, [reader.empty_past()], [history])
    got = normalised(ask(reader, pasts, [wanted], 3))
    close(got, normalised(whole_with(tower, history, wanted)), 1e-5)


@settings(max_examples=20, deadline=None)
@given(cfg=configs(), wanted=st.integers(0, 3), seed=st.integers(0, 99))
def test_outputs_that_nobody_wants_are_left_out(cfg: ModelConfig, wanted: int, seed: int) -> None:
    reader = Incremental(make(cfg, seed))
    users = [drawn(length, seed) for length in (5, 0, 2)]
    empty = [reader.empty_past() for _ in users]
    every, _ = read(reader, empty, users)
    few, pasts = read(reader, [reader.empty_past() for _ in users], users, wanted=wanted)
    newest = [part[max(0, len(part) - wanted) :] for part in every.split([5, 0, 2])]
    close(few, torch.cat(newest))
    more = [drawn(2, 7, start=9_999) for _ in users]
    further, _ = read(reader, pasts, more, wanted=wanted)
    joined = [torch.cat((own.x_nD, new.x_nD)) for own, new in zip(users, more, strict=True)]
    notes = [torch.cat((own.notes_4n, new.notes_4n), dim=1) for own, new in zip(users, more, strict=True)]
    want = [
        whole(reader.tower, Sequence(x, note))[len(x) - min(wanted, 2) :] for x, note in zip(joined, notes, strict=True)
    ]
    close(further, torch.cat(want))


EVERYTHING = ModelConfig(
    **SHAPE, places=True, biases=BiasConfig(position=True, **SMALL), attention=AttentionConfig(kind="silu")
)
"""Not softmax, which a single bucket of time, as two clocks long after all keys have it, does not change."""


def test_candidates_do_not_know_of_one_another() -> None:
    """Swapped, they swap what comes out; one changed, it alone comes out changed."""
    reader = Incremental(make(EVERYTHING))
    _, pasts = read(reader, [reader.empty_past()], [drawn(9, 1)])
    wanted = candidates_at(9_999, 6, 2)
    out = ask(reader, pasts, [wanted])
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    close(ask(reader, pasts, [wanted[order]]), out[order], 1e-12)  # products round by where a row stands
    changed = candidates_at(9_999, 6, 2)
    changed.x_nD[2] += 1.0
    differs = (ask(reader, pasts, [changed]) != out).any(dim=1)
    assert differs.tolist() == [False, False, True, False, False, False]


def test_a_token_that_waits_is_read_anew_and_then_for_good() -> None:
    """What was read with keep=False leaves no trace, whatever its clock said."""
    reader = Incremental(make(EVERYTHING))
    user, wanted = drawn(6, 1), candidates_at(50_000, 3, 2)
    _, kept = read(reader, [reader.empty_past()], [user[:4]])
    found = []
    for time in (4_000, 50_000):
        newest = user[4:5]
        newest.notes_4n = newest.notes_4n.clone()
        newest.notes_4n[1] = time
        _, asked = read(reader, kept, [newest], keep=False)
        wanted.notes_4n[:2] = time
        found.append(ask(reader, asked, [wanted]))
        close(found[-1], whole_with(reader.tower, user[:4] + newest, wanted))
    assert (found[0] - found[1]).abs().amax() > 0.1, "clocks mean something"
    _, longer = read(reader, kept, [user[4:]])
    close(ask(reader, longer, [wanted]), whole_with_clock(reader, user, wanted))


def behind(first: Sequence, second: Sequence) -> Sequence:
    """Both, with the clocks that they have."""
    return Sequence(torch.cat((first.x_nD, second.x_nD)), torch.cat((first.notes_4n, second.notes_4n), dim=1))


def whole_with_clock(reader: Incremental, user: Sequence, wanted: Sequence) -> Tensor:
    """The newest token's clock as it was read, not as the candidates would have it."""
    joined = [behind(user, wanted[i : i + 1]) for i in range(len(wanted))]
    return torch.cat([whole(reader.tower, one)[-1:] for one in joined])


def test_two_who_continue_one_past_do_not_meet() -> None:
    reader = Incremental(make(EVERYTHING))
    user = drawn(5, 1)
    _, start = read(reader, [reader.empty_past()], [user])
    tails = [drawn(3, seed, start=9_999) for seed in (2, 3)]
    ways = [read(reader, start, [tail])[1] for tail in tails]
    again = read(reader, start, [tails[0]], keep=False)[1]
    wanted = candidates_at(50_000, 2, 4)
    for past, tail in ((ways[0], tails[0]), (ways[1], tails[1]), (again, tails[0]), (start, drawn(0, 1))):
        close(ask(reader, past, [wanted]), whole_with_clock(reader, behind(user, tail), wanted))


def test_one_user_twice_in_a_batch_may_ask_at_different_times() -> None:
    reader = Incremental(make(EVERYTHING))
    user = drawn(5, 1)
    _, (past,) = read(reader, [reader.empty_past()], [user[:4]])
    newest = [behind(user[4:], user[:0]) for _ in range(2)]
    for time, own in zip((3_000, 60_000), newest, strict=True):
        own.notes_4n[1] = time
    out, asked = read(reader, [past, past], newest, keep=False)
    assert (out[0] - out[1]).abs().amax() > 0.1, "clocks mean something"
    close(out, torch.cat([whole(reader.tower, behind(user[:4], own))[-1:] for own in newest]))
    wanted = [candidates_at(time, 2, 4) for time in (3_000, 60_000)]
    alone = [whole_with(reader.tower, user[:4] + own, one) for own, one in zip(newest, wanted, strict=True)]
    close(ask(reader, asked, wanted), torch.cat(alone))


@pytest.mark.parametrize("kind", ["silu", "softmax"])
def test_blocks_of_scores_of_any_size_give_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = dataclasses.replace(EVERYTHING, attention=AttentionConfig(kind=kind, soft_cap=0.7))
    reader, user, wanted = Incremental(make(cfg)), drawn(19, 1), candidates_at(9_999, 13, 2)
    found = []
    for scores, queries in ((1 << 18, 128), (150, 3), (1, 1), (300, 5)):
        monkeypatch.setattr("model.past_attention.BLOCK_SCORES", scores)
        monkeypatch.setattr("model.past_attention.BLOCK_QUERIES", queries)
        first, pasts = read(reader, [reader.empty_past()], [user[:4]])
        more, pasts = read(reader, pasts, [user[4:]])
        found.append(torch.cat((first, more, ask(reader, pasts, [wanted]))))
    for other in found[1:]:
        close(other, found[0])


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kind", ["silu", "softmax"])
def test_half_precision_is_that_of_training(kind: str, qk_norm: bool) -> None:
    cfg = ModelConfig(**SHAPE, precision="bf16", qk_norm=qk_norm, attention=AttentionConfig(kind=kind))
    tower = make(cfg, dtype=torch.float32)
    reader, user, wanted = Incremental(tower), drawn(12, 1, torch.float32), candidates_at(9_999, 5, 2, torch.float32)
    user.notes_4n[1, -1] = 9_999
    _, pasts = read(reader, [reader.empty_past()], [user[:7]])
    more, pasts = read(reader, pasts, [user[7:]])
    with torch.autocast("cpu", torch.bfloat16):
        want, alone = whole(tower, user)[7:], whole_with(tower, user, wanted)
    close(normalised(more), normalised(want), 0.03)
    close(normalised(ask(reader, pasts, [wanted])), normalised(alone), 0.03)


def test_memory_is_what_is_stated() -> None:
    halves = [ModelConfig(**SHAPE, precision="bf16", qk_norm=qk_norm) for qk_norm in (False, True)]
    for cfg in (EVERYTHING, *halves):
        reader = Incremental(make(cfg, dtype=torch.float32))
        _, (past,) = read(reader, [reader.empty_past()], [drawn(300, 1, torch.float32)])
        rows = past.memory.rows
        assert 300 <= rows <= 300 * 9 / 8 + 64
        assert past.nbytes == rows * token_bytes(cfg)
    assert token_bytes(EVERYTHING) == 2 * 2 * (2 * (4 + 3) // 2) * 4 + 24


def test_a_past_is_seldom_copied() -> None:
    reader = Incremental(make(EVERYTHING))
    past, memories = reader.empty_past(), set()
    user = drawn(400, 1)
    for start in range(400):
        _, (past,) = read(reader, [past], [user[start : start + 1]], wanted=0)
        memories.add(past.memory)
    assert len(memories) <= 8
    for _ in range(2):
        _, (asked,) = read(reader, [past], [drawn(1, 2, start=999_999)], keep=False)
        assert asked.memory is past.memory, "what is not kept takes no room from what comes next"


def test_who_waits() -> None:
    assert newest_waits(ModelConfig())
    assert not newest_waits(ModelConfig(biases=BiasConfig(time_reference="current")))
    assert not newest_waits(ModelConfig(biases=BiasConfig(time=False)))
