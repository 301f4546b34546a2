"""How sure the heads are of each code of what came next, and how often they are right.

B requests of a batch · D model width · C code levels · V codes per level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.heads import CascadedHeads


@torch.no_grad()
def level_confidence(
    heads: CascadedHeads, hidden_BD: Tensor, codes_BC: Tensor, known_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Probability of the likeliest code of each level, and whether it is the true one, given the true codes before it.

    Of equally likely codes the lowest counts as the likeliest.

    Returns:
        float32 [B, C], NaN in the rows that are not known, and bool [B, C].
    """
    log_p_BCV = torch.log_softmax(heads(hidden_BD, codes_BC).float(), dim=-1)
    most_BC, likeliest_BC = log_p_BCV.max(dim=-1)
    unknown_B1 = ~known_B[:, None]
    return most_BC.exp().masked_fill(unknown_B1, torch.nan), (likeliest_BC == codes_BC) & ~unknown_B1
