"""Warnings of the stack that no user of Segue can act on; everything else stays loud."""

from __future__ import annotations

import logging
import warnings

_KNOWN = (
    (r".*ShardedTensor.*", FutureWarning),
    (r".*ShardedTensor.*", UserWarning),
    (r".*torch.distributed._sharded_tensor.*", UserWarning),
    (r"`(broadcast_buffers|torch\.distributed\.\w+)` is deprecated.*", FutureWarning),
)


def quiet_known_warnings() -> None:
    """Silence deprecation notes that TorchRec 1.8 raises inside torch 2.13, and its per-module info logs."""
    for message, category in _KNOWN:
        warnings.filterwarnings("ignore", message=message, category=category)
    for name in ("torchrec", "torch.fx._symbolic_trace", "torch.distributed.checkpoint"):
        logging.getLogger(name).setLevel(logging.ERROR)
