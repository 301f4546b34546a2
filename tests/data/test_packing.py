from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.packing import balance, pack, pack_in_order, pack_with_room

LENGTHS = st.lists(st.integers(1, 10), max_size=60).map(lambda values: np.array(values, dtype=np.int64))


@given(LENGTHS)
def test_packing_never_overfills_and_never_wastes_what_fits(lengths: np.ndarray) -> None:
    bins = pack(lengths, 10)
    fill = np.bincount(bins, weights=lengths)
    assert (fill <= 10).all()
    # Best fit opens a bin only when no other has room: so of two bins, the later one's first window did not fit.
    for later in range(len(fill)):
        first = int(np.argmax(bins == later))
        before = np.bincount(bins[:first], weights=lengths[:first], minlength=later)[:later]
        assert (before + lengths[first] > 10).all()


def test_packing_leaves_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, size=5000)
    for packed in (pack(lengths, 1024), pack_with_room(lengths, 1024)):
        fill = np.bincount(packed, weights=lengths)
        assert fill.max() <= 1024
        assert fill.sum() / (len(fill) * 1024) > 0.98


def test_room_is_left_only_where_it_costs_little() -> None:
    exact = np.full(400, 512)  # 16 fill a bin of 8,192 to the last token
    np.testing.assert_array_equal(pack_with_room(exact, 8192), pack(exact, 8192))
    mixed = np.random.default_rng(0).integers(1, 2000, size=5000)
    assert np.bincount(pack_with_room(mixed, 16384), weights=mixed).max() <= 16384 - 81


@given(LENGTHS, st.integers(1, 4))
def test_packing_in_order_never_goes_back_a_step(lengths: np.ndarray, bins: int) -> None:
    packed = pack_in_order(lengths, 10, bins)
    assert (np.bincount(packed, weights=lengths, minlength=1) <= 10).all()
    steps = packed // bins
    assert (np.diff(steps) >= 0).all()
    assert steps.tolist()[:1] in ([], [0])
    assert set(np.diff(steps)) <= {0, 1}
    # A step ends with a window that has no room in it.
    for at in np.flatnonzero(np.diff(steps)):
        of_step = steps[: at + 1] == steps[at]
        fill = np.bincount(packed[: at + 1][of_step] % bins, weights=lengths[: at + 1][of_step], minlength=bins)
        assert (fill + lengths[at + 1] > 10).all()


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 6))
def test_dealing_anew_keeps_windows_and_budget(lengths: np.ndarray, bins: int) -> None:
    packed = pack(lengths, 12)
    step = packed < bins
    lengths, packed = lengths[step], packed[step]
    before = packed.copy()
    dealt = balance(lengths, packed, bins, 12)
    np.testing.assert_array_equal(packed, before)
    assert dealt.shape == packed.shape
    assert ((dealt >= 0) & (dealt < bins)).all()
    assert (np.bincount(dealt, weights=lengths, minlength=bins) <= 12).all()


def test_work_is_balanced_on_long_tailed_lengths() -> None:
    random = np.random.default_rng(3)
    for longest, capacity in ((512, 8192), (2048, 16384), (8192, 65536)):
        lengths = np.minimum(random.lognormal(8, 1.1, size=4000).astype(np.int64) + 1, longest)
        packed = pack_with_room(lengths, capacity)
        ratios, given_ratios = [], []
        for step in range(int(packed.max()) // 8):
            of_step = packed // 8 == step
            for found, bin_of in (
                (ratios, balance(lengths[of_step], packed[of_step] % 8, 8, capacity)),
                (given_ratios, packed[of_step] % 8),
            ):
                work = np.bincount(bin_of, weights=lengths[of_step].astype(float) ** 2, minlength=8)
                found.append(work.max() / work.mean())
        assert np.mean(ratios) < 1.05
        assert np.mean(ratios) < np.mean(given_ratios)
