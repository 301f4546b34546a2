"""Randomness as a function of names, not of history: what happens at a step depends on the step alone."""

from __future__ import annotations

import hashlib
import random

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for a named purpose, e.g. `derive_seed(run_seed, "shuffle", epoch)`."""
    # The type is part of the name ("1" is not 1), so a NumPy integer would silently be another seed.
    assert all(type(part) in (int, str) for part in parts), parts
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(*parts: int | str) -> None:
    """Set every generator that model code may draw from (Python, NumPy, torch on all devices)."""
    import torch  # here alone: commands that only name seeds need not wait for it

    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
