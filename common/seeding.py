"""Randomness as a function of names, not of history: what happens at a step depends on the step alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


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


def random_states() -> dict[str, Tensor]:
    """The states of all generators that `seed_everything` sets, as tensors that a checkpoint can hold."""
    import torch

    kind, keys, *rest = np.random.get_state(legacy=True)
    assert kind == "MT19937"
    version, words, gauss = random.getstate()
    states = {
        "random.torch": torch.get_rng_state(),
        "random.numpy": torch.tensor([*(int(key) for key in keys), int(rest[0]), int(rest[1])]),
        "random.numpy_gauss": torch.tensor(float(rest[2]), dtype=torch.float64),
        "random.python": torch.tensor([version, *words]),
        "random.python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Put all generators where `random_states` found them."""
    import torch

    torch.set_rng_state(states["random.torch"])
    *keys, position, has_gauss = states["random.numpy"].tolist()
    numpy_keys = np.array(keys, dtype=np.uint32)
    np.random.set_state(("MT19937", numpy_keys, position, has_gauss, float(states["random.numpy_gauss"])))
    version, *words = states["random.python"].tolist()
    gauss = states["random.python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    if "random.cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["random.cuda"])
