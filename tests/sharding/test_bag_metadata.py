"""The quick kernel for variable batches on the CPU gives what FBGEMM's gives, bit for bit."""

from __future__ import annotations

import multiprocessing
from itertools import accumulate

import fbgemm_gpu  # noqa: F401 – the operators
import torch
from torch import Tensor

from sharding.bag_metadata import bag_metadata, fast_bag_metadata

SHAPES = [(1, 1), (1, 3), (3, 1), (4, 2), (2, 4), (5, 3)]
"""Tables and ranks."""


def arguments(seed: int, tables: int, ranks: int) -> tuple[object, ...]:
    """Bags of 0 … 6 a table and rank, as TorchRec describes them; tables of different widths."""
    random = torch.Generator().manual_seed(seed)
    bags_TR = torch.randint(0, 7, (tables, ranks), generator=random)
    width_T = 4 * torch.randint(1, 5, (tables,), generator=random)
    offsets_T = torch.tensor([0, *accumulate(bags_TR.sum(1).tolist())], dtype=torch.int32)
    by_rank = torch.cat([torch.zeros(tables, 1, dtype=torch.int64), bags_TR.cumsum(1)], 1).int()
    sizes_RT = (bags_TR * width_T[:, None]).T.flatten().tolist()
    output_offsets = torch.tensor([0, *accumulate(sizes_RT)], dtype=torch.int64)
    widths = torch.tensor([0, *accumulate(width_T.tolist())], dtype=torch.int32)
    most, total = int(bags_TR.max()), int(bags_TR.sum())
    return offsets_T, by_rank, output_offsets, widths, -1, False, most, 26, total, None


def both_ways() -> list[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """FBGEMM's own kernel, then ours by itself, then ours in its place."""
    found = []
    for seed, (tables, ranks) in enumerate(SHAPES * 5):
        given = arguments(seed, tables, ranks)
        if given[-2]:
            found.append((given, torch.ops.fbgemm.generate_vbe_metadata(*given)))
    fast_bag_metadata()
    return [
        (list(theirs), list(bag_metadata(*given)), list(torch.ops.fbgemm.generate_vbe_metadata(*given)))  # type: ignore[arg-type]
        for given, theirs in found
    ]


def test_places_of_bags_are_those_of_the_kernel_that_is_replaced() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # where nobody has replaced it yet
        found = pool.apply(both_ways)
    assert len(found) > 20
    for theirs, ours, in_place in found:
        for one, two, three in zip(theirs, ours, in_place, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)
            assert one.dtype == two.dtype == three.dtype
