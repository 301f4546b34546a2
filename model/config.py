"""What a model is made of, as options of the configuration, and the vocabulary that the data dictate."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import group, option
from common.errors import InputError
from data.schema import QR_REMAINDERS


@dataclass
class AttentionConfig:
    """How a token gathers from the tokens before it (HSTU paper, equation 2)."""

    kind: str = option(
        "silu",
        "silu: pointwise, SiLU(q·k + bias) / n, as in HSTU; softmax: as in a Transformer",
        choices=("silu", "softmax"),
    )
    backend: str = option(
        "jagged",
        "jagged: grouped users, recomputed in the backward, for CPU training; dense: the obvious reference, for tests",
        choices=("jagged", "dense"),
    )
    normalise_by: str = option(
        "max",
        "n of silu attention; max: the fixed max_history; length: the number of tokens that the query attends to",
        choices=("max", "length"),
    )
    scale: str = option(
        "none",
        "none: q·k as it is, as in the published HSTU code; sqrt: divided by √head_dim_qk",
        choices=("none", "sqrt"),
    )

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.kind == "softmax" and self.normalise_by == "length":
            raise InputError(
                "normalise_by=length means nothing with kind=softmax, which normalises by itself: set normalise_by=max"
            )


@dataclass
class BiasConfig:
    """What is added to q·k besides: each a switch, each a function of a 1-D table, none a matrix."""

    alibi: bool = option(True, "a fixed slope per head times the distance in tokens")
    time: bool = option(True, "a learned weight per head and bucket of the time between query and key")
    duration: bool = option(True, "a learned weight per head and bucket of the key's duration")
    organic: bool = option(True, "a learned weight per head for organic, not organic, missing")
    time_buckets: int = option(64, "buckets of the time bias, two per doubling of the seconds", minimum=2)
    duration_buckets: int = option(32, "buckets of the duration bias, the last one for a missing duration", minimum=3)
    time_reference: str = option(
        "next",
        "the query's clock; next: when the event to be predicted happens (the time of the request; so does the "
        "published HSTU code); current: when the query's own event happened",
        choices=("next", "current"),
    )


@dataclass
class HeadsConfig:
    """The cascade of output heads, one per code level."""

    gated: bool = option(True, "earlier codes also scale the hidden vector, not only shift it")
    logit_scale: float = option(20.0, "what the logits are multiplied by: 1 / temperature")
    chunk_tokens: int = option(256, "tokens whose logits of one level are held at once", minimum=1)


@dataclass
class ModelConfig:
    """An HSTU recommender over residual-quantised items."""

    width: int = option(64, "width of embeddings and of the residual stream", minimum=1)
    blocks: int = option(2, "HSTU blocks", minimum=1)
    heads: int = option(2, "attention heads", minimum=1)
    head_dim_qk: int = option(32, "width of a head's queries and keys", minimum=1)
    head_dim_v: int = option(32, "width of a head's values and gates", minimum=1)
    dropout: float = option(0.2, "dropout before each block's output projection", minimum=0)
    input_dropout: float = option(0.2, "dropout of the summed embeddings", minimum=0)
    scale_input: bool = option(True, "multiply the summed embeddings by √width")
    max_history: int = option(200, "longest history; also the fixed n of silu attention", minimum=1)
    norm_eps: float = option(1e-6, "ε of the layer norms", minimum=0)
    qr_remainders: int = option(QR_REMAINDERS, "R of the quotient-remainder artist tables", minimum=1)
    attention: AttentionConfig = group(AttentionConfig, "attention")
    biases: BiasConfig = group(BiasConfig, "attention biases")
    output: HeadsConfig = group(HeadsConfig, "output heads")

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        faults = [
            f"{name}={value} drops everything: must be below 1"
            for name, value in (("dropout", self.dropout), ("input_dropout", self.input_dropout))
            if value >= 1
        ]
        if self.biases.time and self.biases.time_buckets > 64:
            # biases.MAX_SECONDS has 31 bits, and there are two buckets a bit.
            faults.append(f"biases.time_buckets={self.biases.time_buckets}: buckets above 64 can never be reached")
        if faults:
            raise InputError(*faults)


@dataclass(frozen=True)
class Vocabulary:
    """Sizes that come from the data.

    Args:
        levels: code levels of an item, C.
        codes: codes per level, V.
        artists: known artists, A.
        event_types: kinds of events.
    """

    levels: int
    codes: int
    artists: int
    event_types: int

    def __post_init__(self) -> None:
        """Check that every table but the artists' has rows."""
        assert min(self.levels, self.codes, self.event_types) >= 1, self
        assert self.artists >= 0, self
