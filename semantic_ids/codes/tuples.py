"""Code tuples as numbers: packed into words, put in order, looked up.

A tuple becomes as many codes a word as fit in 64 bits, the most significant first, so that words compare as tuples do.
Six of eight codes of 1,024 stand in the first word: sorting by it alone settles all but a few items, and only runs of
equal first words are sorted by what follows.

N items in the catalogue · n known items or tuples · C code levels · V codes per level · G tuples in use · M sorted
tuples · m tuples looked up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_WORD_BITS = 64


def pack(codes_nC: npt.NDArray[np.integer], codes_per_level: int) -> list[Words]:
    """Tuples as words [n], most significant first; tuples ascend as their words do, and equal words are equal tuples.

    Codes are below `codes_per_level`, which is not checked here: a greater one would be another tuple.
    """
    bits = max(1, (codes_per_level - 1).bit_length())
    together = _WORD_BITS // bits
    words = []
    for start in range(0, codes_nC.shape[1], together):
        word = codes_nC[:, start].astype(np.uint64)
        for level in range(start + 1, min(start + together, codes_nC.shape[1])):
            word <<= np.uint64(bits)
            # The codes themselves, not a copy in 64 bits: NumPy widens them a buffer at a time.
            np.bitwise_or(word, codes_nC[:, level], out=word, casting="unsafe", dtype=np.uint64)
        words.append(word)
    return words


def order_items(
    codes_NC: npt.NDArray[np.integer], training_plays_N: npt.NDArray[np.int64], codes_per_level: int
) -> tuple[Indices, Indices]:
    """Known items sorted by codes, and where each tuple's group begins.

    Returns:
        Item indices [n], without those of the all-zero tuple, by codes, then more plays, then lower index; and [G + 1]
        offsets: items that share tuple g are those from offset g to offset g + 1.
    """
    words = pack(codes_NC, codes_per_level)
    known_N = np.zeros(len(codes_NC), bool)
    for word in words:
        known_N |= word != 0
    known_n = np.flatnonzero(known_N)
    if len(known_n) < len(known_N):
        words = [word[known_n] for word in words]
    order = np.argsort(words[0])
    first_word = words[0][order]
    equal = first_word[1:] == first_word[:-1]
    if len(tied := np.flatnonzero(_beside(equal))):
        order[tied] = _refined(order[tied], first_word[tied], words[1:], training_plays_N, known_n)
    starts = np.append(True, ~equal) if len(order) else np.zeros(0, bool)
    if len(tied) and len(words) > 1:
        starts[tied] |= _differs_from_before([word[order[tied]] for word in words])
    return known_n[order], np.append(np.flatnonzero(starts), len(order))


def _beside(equal: Mask) -> Mask:
    """Which of n places are equal to the one before or after, given the n - 1 comparisons of neighbours."""
    beside = np.zeros(len(equal) + 1, bool)
    beside[1:] = equal
    beside[:-1] |= equal
    return beside


def _refined(
    places: Indices,
    first_word: Words,
    further_words: Sequence[Words],
    training_plays_N: npt.NDArray[np.int64],
    known_n: Indices,
) -> Indices:
    """`places`, of which runs share the ascending `first_word`, by the further words, more plays, lower place."""
    plays = training_plays_N[known_n[places]]
    keys = [places, -plays, *(word[places] for word in reversed(further_words)), first_word]
    refined: Indices = places[np.lexsort(keys)]
    return refined


def _differs_from_before(words: Sequence[Words]) -> Mask:
    """Where a tuple is not the one before it; the first is not."""
    differs = np.zeros(len(words[0]), bool)
    differs[:1] = True
    for word in words:
        differs[1:] |= word[1:] != word[:-1]
    return differs


def contains(sorted_words: Sequence[Words], words: Sequence[Words]) -> Mask:
    """Which of m tuples are among M sorted ones, both as `pack` gives them: [m]. Repeats do no harm."""
    begin, end = find(sorted_words, words)
    return begin < end


def find(sorted_words: Sequence[Words], words: Sequence[Words]) -> tuple[Indices, Indices]:
    """Ranges [m] of sorted tuples that are equal to each of m tuples: from the first to before the second.

    An empty range stands where the tuple would be put in.
    """
    begin = np.searchsorted(sorted_words[0], words[0], side="left")
    end = np.searchsorted(sorted_words[0], words[0], side="right")
    for values, wanted in zip(sorted_words[1:], words[1:], strict=True):
        begin, end = find_within(values, wanted, begin, end)
    return begin, end


def find_within(
    values: npt.NDArray[np.unsignedinteger], wanted_m: npt.NDArray[np.unsignedinteger], begin_m: Indices, end_m: Indices
) -> tuple[Indices, Indices]:
    """The part of each range begin_m … end_m - 1 of `values` that is equal to `wanted_m`; `values` ascends in each."""
    return (
        _first_place(values, wanted_m, begin_m, end_m, beyond=False),
        _first_place(values, wanted_m, begin_m, end_m, beyond=True),
    )


def _first_place(
    values: npt.NDArray[np.unsignedinteger],
    wanted_m: npt.NDArray[np.unsignedinteger],
    begin_m: Indices,
    end_m: Indices,
    *,
    beyond: bool,
) -> Indices:
    """Within each range, the first place whose value is at least the wanted one, or `beyond` it; the end if none is."""
    low, high = begin_m.astype(np.int64), end_m.astype(np.int64)
    # Halving all ranges at once: as many rounds as the longest has bits, each over those still undecided.
    while len(open_m := np.flatnonzero(low < high)):
        middle = (low[open_m] + high[open_m]) >> 1
        found, wanted = values[middle], wanted_m[open_m]
        before = found <= wanted if beyond else found < wanted
        low[open_m[before]] = middle[before] + 1
        high[open_m[~before]] = middle[~before]
    return low
