"""What every backend that trains on a CPU keeps to, the mask and dropout by their definitions, the oracle by loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention.dropout import Dropout
from model.biases import log_buckets
from model.mask import Mask
from tests.model.attention.strategies import KINDS, Case

BACKENDS = ("dense", "jagged")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("soft_cap", [0.0, 1.5])
def test_the_oracle_is_the_formula(kind: str, soft_cap: float) -> None:
    """Token by token, in Python's numbers."""
    case = Case([4, 0, 1, 3], padding=1, heads=2, kind=kind, scale=0.7, soft_cap=soft_cap, dropout=0.3, positions=2)
    for leaf in case.leaves.values():
        leaf.requires_grad_(False)
    out = case.forward("dense")
    time, position, dropout = case.biases.time, case.biases.position, Dropout(0.3, case.seed)
    assert time is not None
    assert position is not None
    assert case.biases.slopes_H is not None
    owner = [0, 0, 0, 0, 2, 3, 3, 3]
    for i, h in ((i, h) for i in range(8) for h in range(2)):
        seen = [j for j in range(i + 1) if owner[j] == owner[i]]
        scores = []
        for j in seen:
            bucket = int(log_buckets(time.query_times_L[i] - time.key_times_L[j], 64))
            score = 0.7 * float(case.q[i, h] @ case.k[j, h]) - float(case.biases.slopes_H[h]) * (i - j)
            score += float(time.table_HT[h, bucket]) + float(position.table_HP[h, min(i - j, 1)])
            score += sum(float(bias.table_HK[h, bias.buckets_L[j]]) for bias in case.biases.by_key)
            scores.append(soft_cap * math.tanh(score / soft_cap) if soft_cap else score)
        if kind == "softmax":
            weights = [math.exp(s) / sum(math.exp(other) for other in scores) for s in scores]
        else:
            assert case.normaliser is not None
            weights = [s / (1 + math.exp(-s)) / float(case.normaliser[i]) for s in scores]
        kept = [float(dropout.keep(torch.tensor(h), torch.tensor(i), torch.tensor(j))) / 0.7 for j in seen]
        want = sum(w * keep * case.v[j, h] for w, keep, j in zip(weights, kept, seen, strict=True))
        torch.testing.assert_close(out[i, h], want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_zero_and_takes_no_gradient(backend: str, kind: str) -> None:
    case = Case([5, 80, 2], padding=6, kind=kind)
    found = case.forward_and_gradients(backend)
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(found[name][87:], torch.zeros_like(found[name][87:])), name
        assert found[name][:87].abs().amax(dim=(1, 2)).gt(0).float().mean() > 0.9, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_sees_neither_the_future_nor_other_users(backend: str, kind: str) -> None:
    """A change at one token of the middle user leaves all but its own later tokens bit for bit as they were."""
    case = Case([40, 70, 40, 68], padding=3, kind=kind)
    before, changed = case.forward(backend), 40 + 33
    with torch.no_grad():
        for tensor in (case.q, case.k, case.v):
            tensor[changed] += 1.0
    assert case.biases.time is not None
    case.biases.time.key_times_L[changed] += 1
    case.biases.by_key[0].buckets_L[changed] = (case.biases.by_key[0].buckets_L[changed] + 1) % 5
    after = case.forward(backend)
    touched = (before != after).flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert touched == list(range(changed, 40 + 70))


ALONE = [0, 40, 57, 58, 100, 109, *range(140, 150), 160]
"""Candidates of users of 40, 70, 0 and 50 tokens: the first, the last, neighbours amidst, a row of them."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_sees_a_token_that_is_alone(backend: str, kind: str) -> None:
    """A change at one of them leaves all but its own output bit for bit as it was."""
    case = Case([40, 70, 0, 50], padding=3, alone=ALONE, kind=kind, dropout=0.2, soft_cap=2.0)
    assert case.biases.time is not None
    for changed in (0, 57, 58, 109, 149):
        before = case.forward(backend)
        with torch.no_grad():
            for tensor in (case.q, case.k, case.v):
                tensor[changed] += 1.0
        case.biases.by_key[0].buckets_L[changed] = (case.biases.by_key[0].buckets_L[changed] + 1) % 5
        touched = (before != case.forward(backend)).flatten(1).any(dim=1).nonzero().flatten().tolist()
        assert touched == [changed]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [0, 1, 59])
def test_a_token_that_is_alone_finds_what_it_would_without_the_others(backend: str, kind: str, last: int) -> None:
    """The events before it, then it: a causal sequence of its own."""
    case = Case([60], alone=[*range(1, 59, 2), 59] if last else [0, 59], kind=kind)
    assert case.mask.alone_L is not None
    chosen = torch.tensor([i for i in range(last) if not case.mask.alone_L[i]] + [last])
    found = case.forward(backend)[last]
    lone = Case([len(chosen)], kind=kind)
    with torch.no_grad():
        for name, leaf in lone.leaves.items():
            whole = case.leaves[name]
            leaf.copy_(whole[chosen] if name in "qkv" else whole)
    assert case.biases.time is not None
    assert lone.biases.time is not None
    lone.biases.time.query_times_L.copy_(case.biases.time.query_times_L[chosen])
    lone.biases.time.key_times_L.copy_(case.biases.time.key_times_L[chosen])
    for mine, its in zip(lone.biases.by_key, case.biases.by_key, strict=True):
        mine.buckets_L.copy_(its.buckets_L[chosen])
    if lone.normaliser is not None:
        assert case.normaliser is not None
        lone.normaliser.copy_(case.normaliser[chosen])
    torch.testing.assert_close(found, lone.forward("dense")[-1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_of_one_place_may_stand_in_any_order(backend: str, kind: str) -> None:
    """Their outputs change places with them, and nothing else changes."""
    case = Case([30, 70], alone=[*range(40, 50), *range(90, 100)], kind=kind)
    before, order = case.forward(backend), torch.arange(100)
    order[40:50] = 40 + torch.randperm(10, generator=case.generator)
    order[90:] = 90 + torch.randperm(10, generator=case.generator)
    assert case.biases.time is not None
    by_token = [case.q, case.k, case.v, case.biases.time.query_times_L, case.biases.time.key_times_L]
    by_token += [bias.buckets_L for bias in case.biases.by_key]
    by_token += [] if case.normaliser is None else [case.normaliser]
    with torch.no_grad():
        for x in by_token:
            x.copy_(x[order])
    torch.testing.assert_close(case.forward(backend), before[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_in_which_no_token_is_alone_changes_no_bit(backend: str, kind: str) -> None:
    plain, masked = (Case([5, 70, 2], padding=3, alone=alone, kind=kind) for alone in (0.0, [999]))
    assert plain.mask.alone_L is None
    assert masked.mask.alone_L is not None
    found, expected = masked.forward_and_gradients(backend), plain.forward_and_gradients(backend)
    assert all(torch.equal(found[name], want) for name, want in expected.items())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[], [0, 0], [0, 3, 0]])
def test_none_but_tokens_that_are_alone(backend: str, kind: str, lengths: list[int]) -> None:
    """Each finds its own value."""
    case = Case(lengths, padding=2, alone=1.0, kind=kind)
    out, tokens = case.forward_and_gradients(backend)["out"], sum(lengths)
    assert not out[tokens:].any()
    if kind == "softmax":
        torch.testing.assert_close(out[:tokens], case.v[:tokens])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_user_at_all(backend: str, kind: str) -> None:
    found = Case([0, 0], padding=3, kind=kind).forward_and_gradients(backend)
    assert all(torch.equal(x, torch.zeros_like(x)) for x in found.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_comes_out_as_it_went_in(backend: str) -> None:
    case = Case([30, 4], dtype=torch.bfloat16)
    found = case.forward_and_gradients(backend)
    assert found["out"].dtype == found["dq"].dtype == torch.bfloat16
    assert found["dtime"].dtype == found["dposition"].dtype == torch.float32


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 4), max_size=5), padding=st.integers(0, 2), alone=st.integers(0, 2**22 - 1))
def test_the_mask_is_user_local_and_causal(lengths: list[int], padding: int, alone: int) -> None:
    owner: list[int | None] = [user for user, length in enumerate(lengths) for _ in range(length)]
    owner += [None] * padding
    token = torch.arange(len(owner))
    offsets, is_alone = torch.tensor([0, *lengths]).cumsum(0), [bool(alone >> i & 1) for i in range(len(owner))]
    want = [[a is not None and a == b and j <= i for j, b in enumerate(owner)] for i, a in enumerate(owner)]
    if owner:
        assert Mask(offsets).visible(token[:, None], token[None, :]).tolist() == want
    want = [[seen and (i == j or not is_alone[j]) for j, seen in enumerate(row)] for i, row in enumerate(want)]
    mask = Mask(offsets, torch.tensor(is_alone, dtype=torch.bool))
    if owner:
        assert mask.visible(token[:, None], token[None, :]).tolist() == want
    places = [sum(row[:i]) for i, row in enumerate(want)]
    users = sum(lengths)
    assert mask.positions(len(owner))[:users].tolist() == places[:users]


def _mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16)


@settings(deadline=None)
@given(seed=st.integers(0, 2**63), head=st.integers(0, 64), i=st.integers(0, 2**31 - 1), j=st.integers(0, 2**31 - 1))
def test_dropout_follows_its_definition(seed: int, head: int, i: int, j: int) -> None:
    """In whole numbers without a sign."""
    query = _mix(_mix((seed ^ head * 0x9E3779B1) & 0xFFFFFFFF) ^ (i * 0x85EBCA77 & 0xFFFFFFFF))
    bits = _mix(query ^ _mix((j * 0xC2B2AE3D + 1) & 0xFFFFFFFF))
    signed = bits - 2**32 if bits >> 31 else bits
    for probability in (0.0, 0.25, 0.9):
        kept = Dropout(probability, seed).keep(torch.tensor(head), torch.tensor(i), torch.tensor(j))
        assert bool(kept) == (signed >= round(probability * 2**32) - 2**31)


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 17])
def test_dropout_looks_independent(seed: int) -> None:
    """Rates by row, by column and overall, and agreement of neighbours, heads and seeds, within five deviations."""
    head, token = torch.arange(4)[:, None, None], torch.arange(600)
    kept = Dropout(0.3, seed).keep(head, 10**6 + token[:, None], 10**6 + token).double()
    cells = 600 * 600
    assert abs(kept.mean() - 0.7) < 5 * (0.21 / (4 * cells)) ** 0.5
    for dim in (1, 2):
        assert (kept.mean(dim) - 0.7).abs().max() < 5.5 * (0.21 / 600) ** 0.5
    other_seed = Dropout(0.3, seed + 1).keep(head, 10**6 + token[:, None], 10**6 + token).double()
    pairs = {
        "next key": (kept[:, :, 1:], kept[:, :, :-1]),
        "next query": (kept[:, 1:], kept[:, :-1]),
        "diagonal": (kept[:, 1:, 1:], kept[:, :-1, :-1]),
        "transposed": (kept, kept.mT),
        "next head": (kept[1:], kept[:-1]),
        "next seed": (kept, other_seed),
    }
    for name, (a, b) in pairs.items():
        correlation = ((a - 0.7) * (b - 0.7)).mean() / 0.21
        assert abs(correlation) < 6 / (a.numel() / 2) ** 0.5, name
