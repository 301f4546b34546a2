"""Where the sums of variable batches begin, on the CPU, in a few operations.

FBGEMM 1.8's kernel for the CPU makes several tensors for every bag, some 20 µs each: with bags of distinct items that
is most of a lookup. What is computed is the same, and equal to the last bit.

Shapes: T tables · R ranks · B bags of all tables and ranks.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

_library: torch.library.Library | None = None


def fast_bag_metadata() -> None:
    """Replace FBGEMM's kernel for the CPU; done once, it holds for the process."""
    global _library
    if _library is None:
        _library = torch.library.Library("fbgemm", "IMPL")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of any kernel that takes another's place: that is meant
            _library.impl("generate_vbe_metadata", bag_metadata, "CPU", allow_override=True)


def bag_metadata(
    B_offsets: Tensor,
    B_offsets_rank_per_feature: Tensor,
    output_offsets_feature_rank: Tensor,
    D_offsets: Tensor,
    D: int,
    nobag: bool,
    max_B_feature_rank: int,  # noqa: ARG001
    info_B_num_bits: int,
    total_B: int,
    vbe_output_offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Place of each bag's sum in the output, int64 [B], and its table and place in the batch as one number, int32 [B].

    Arguments as of `torch.ops.fbgemm.generate_vbe_metadata`.
    """
    tables, ranks = B_offsets_rank_per_feature.shape[0], B_offsets_rank_per_feature.shape[1] - 1
    bags_TR = B_offsets_rank_per_feature.diff(dim=1).long()
    bags_n = bags_TR.flatten()
    every_B = torch.arange(total_B)
    within_B = every_B - (bags_n.cumsum(0) - bags_n).repeat_interleave(bags_n, output_size=total_B)
    first_TR = (
        output_offsets_feature_rank[:-1].view(ranks, tables).T if vbe_output_offsets is None else vbe_output_offsets.T
    )
    table_B = torch.arange(tables).repeat_interleave(bags_TR.sum(dim=1), output_size=total_B)
    width_B = (D_offsets.diff().long() if not nobag else torch.full((tables,), D)).index_select(0, table_B)
    first_B = first_TR.flatten().repeat_interleave(bags_n, output_size=total_B)
    of_table_B = every_B - B_offsets[:-1].long().index_select(0, table_B)
    return first_B + within_B * width_B, ((table_B << info_B_num_bits) | of_table_B).int()
