"""What a model is made of, as options of the configuration, and the vocabulary that the data dictate."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import group, option
from common.errors import InputError
from data.ranking.config import INTERLEAVED, MERGED
from data.schema import QR_REMAINDERS
from model.hashing_config import HashingConfig
from model.heads_config import HeadsConfig as HeadsConfig
from model.heads_config import plain

BACKENDS = ("jagged", "dense", "flex", "triton")


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
        "jagged: grouped users, recomputed in the backward, for CPU training; dense: the obvious reference, for tests; "
        "flex: softmax on GPUs, by FlexAttention; triton: silu on GPUs, by kernels of our own",
        choices=BACKENDS,
    )
    normalise_by: str = option(
        "max",
        "n of silu attention; max: the fixed max_history or, with output.kind=actions, the most places that a window's "
        "tokens have; length: the number of tokens that the query attends to",
        choices=("max", "length"),
    )
    scale: str = option(
        "none",
        "none: q·k as it is, as in the published HSTU code; sqrt: divided by √head_dim_qk",
        choices=("none", "sqrt"),
    )
    soft_cap: float = option(0.0, "scores s, biases included, become c · tanh(s / c); 0 leaves them alone", minimum=0)
    dropout: float = option(0.0, "share of attention weights that are dropped", minimum=0)

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        faults = []
        if self.kind == "softmax" and self.normalise_by == "length":
            faults.append(
                "normalise_by=length means nothing with kind=softmax, which normalises by itself: set normalise_by=max"
            )
        only = {"flex": "softmax", "triton": "silu"}.get(self.backend, self.kind)
        if self.kind != only:
            faults.append(
                f"backend={self.backend} computes kind={only} alone, not kind={self.kind}: set kind={only}, "
                f"or backend=jagged, which computes both"
            )
        if self.dropout >= 1:
            faults.append(f"dropout={self.dropout} drops everything: must be below 1")
        elif self.dropout > 0 and self.backend == "flex":
            faults.append(
                f"dropout={self.dropout}: backend=flex cannot drop weights after its softmax: set dropout=0.0, "
                f"or backend=jagged"
            )
        if faults:
            raise InputError(*faults)


@dataclass
class BiasConfig:
    """What is added to q·k besides: each a switch, each a function of a 1-D table, none a matrix."""

    alibi: bool = option(True, "a fixed slope per head times the distance in tokens")
    time: bool = option(True, "a learned weight per head and bucket of the time between query and key")
    duration: bool = option(True, "a learned weight per head and bucket of the key's duration")
    organic: bool = option(True, "a learned weight per head for organic, not organic, missing")
    position: bool = option(False, "a learned weight per head and distance in tokens, beside or instead of alibi")
    time_buckets: int = option(64, "buckets of the time bias, two per doubling of the seconds", minimum=2)
    duration_buckets: int = option(32, "buckets of the duration bias, the last one for a missing duration", minimum=3)
    position_buckets: int = option(
        256, "distances 0 … position_buckets - 1 of the position bias; the last weight is that of all longer", minimum=1
    )
    time_reference: str = option(
        "next",
        "the query's clock; next: when the event to be predicted happens (the time of the request; so does the "
        "published HSTU code); current: when the query's own event happened",
        choices=("next", "current"),
    )


@dataclass
class TransformerConfig:
    """What a Transformer has and HSTU has not."""

    ffn_width: int = option(
        0,
        "width inside the feed-forward layers; 0: 4 · width for sasrec, 8/3 · width rounded up for transformer++, "
        "which has three matrices where sasrec has two",
        minimum=0,
    )
    activation: str = option("relu", "of sasrec's feed-forward layers", choices=("relu", "gelu"))
    rope_base: float = option(
        10_000.0, "transformer++: wavelengths of the rotations rise from 2π tokens towards 2π · rope_base", minimum=1
    )


@dataclass
class ItemTableConfig:
    """A table of plain items, beside that of their codes or in its place."""

    kind: str = option(
        "none",
        "none: codes and artists alone tell items apart; vocabulary: a row for each item of the catalogue; hashed: a "
        "fixed number of rows whose owners change",
        choices=("none", "vocabulary", "hashed"),
    )
    only: bool = option(
        False, "leave out the table of codes, so that the input is plain item ids in place of semantic ids: a baseline"
    )
    hashing: HashingConfig = group(HashingConfig, "kind=hashed")

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.only and self.kind == "none":
            raise InputError(
                "only=true leaves out the codes, and kind=none the items: set kind=vocabulary, or only=false"
            )


@dataclass
class ModelConfig:
    """A sequential recommender over residual-quantised items."""

    architecture: str = option(
        "hstu",
        "what reads the history; hstu; sasrec: a Transformer with learned places, layer norms and a ReLU or GELU "
        "between two matrices; transformer++: rotary places, RMS norms and SwiGLU",
        choices=("hstu", "sasrec", "transformer++"),
    )
    width: int = option(64, "width of embeddings and of the residual stream", minimum=1)
    blocks: int = option(2, "blocks of the encoder", minimum=1)
    heads: int = option(2, "attention heads", minimum=1)
    head_dim_qk: int = option(32, "width of a head's queries and keys", minimum=1)
    head_dim_v: int = option(32, "width of a head's values (and gates, in HSTU)", minimum=1)
    dropout: float = option(
        0.2, "dropout before each HSTU block's output projection, after each branch of a Transformer", minimum=0
    )
    input_dropout: float = option(0.2, "dropout of the summed embeddings", minimum=0)
    scale_input: bool = option(True, "multiply the summed embeddings by √width")
    places: bool = option(
        False, "hstu: add a learned vector for a token's place in its window, as published; sasrec always does"
    )
    qk_norm: bool = option(
        False, "divide each head's queries and keys by their root mean square, then multiply by a learned weight"
    )
    residual_scale: bool = option(
        False, "multiply what each branch adds to the residual stream by a learned number, at first 1/√(2 · blocks)"
    )
    precision: str = option(
        "float32",
        "of the matrix products inside the blocks; bf16: by autocast. Weights, residual stream and loss are float32",
        choices=("float32", "bf16"),
    )
    pooled_norm: bool = option(True, "hstu: a layer norm after attention has gathered, before the gate")
    gate: bool = option(True, "hstu: multiply what attention gathered by U, a function of the token itself")
    recompute: bool = option(
        False, "hstu: compute norms, projections and gates anew in the backward instead of keeping them: less memory"
    )
    max_history: int = option(
        200, "longest history, in events; also the fixed n of silu attention, where an event is one token", minimum=1
    )
    norm_eps: float = option(1e-6, "ε of the norms", minimum=0)
    qr_remainders: int = option(QR_REMAINDERS, "R of the quotient-remainder artist tables", minimum=1)
    attention: AttentionConfig = group(AttentionConfig, "attention")
    biases: BiasConfig = group(BiasConfig, "attention biases")
    items: ItemTableConfig = group(ItemTableConfig, "a table of plain items")
    transformer: TransformerConfig = group(TransformerConfig, "sasrec and transformer++")
    output: HeadsConfig = group(HeadsConfig, "what comes out")

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
        if self.output.kind == "items" and self.items.kind != "vocabulary":
            faults.append(
                f"output.kind=items scores items by their rows of a table that has one for each, and items.kind is "
                f"{self.items.kind}: set items.kind=vocabulary, or output.kind=codes"
            )
        if self.architecture != "hstu":
            faults += self._transformer_faults()
        if faults:
            raise InputError(*faults)

    @property
    def form(self) -> str | None:
        """How items and actions become tokens; None where the output are no actions, and a token is an event."""
        return self.output.actions.form if self.output.kind == "actions" else None

    @property
    def series(self) -> int:
        """The most tokens of slow series in a window."""
        return self.output.actions.series

    @property
    def max_tokens(self) -> int:
        """The most tokens of one user's window."""
        return int(self.window_tokens(self.max_history))

    @property
    def max_places(self) -> int:
        """The most different places of one user's tokens, which candidates that are alone may share."""
        # A merged candidate stands where the event would that it may become: behind all others at most.
        return self.max_history + 1 + self.series if self.form == MERGED else self.max_tokens

    def window_tokens(self, events: float) -> float:
        """Tokens of a window of so many events that are read, in training; with as many of series as there can be."""
        if self.form == INTERLEAVED:
            events = 2 * events + 1  # an item and an action each, and the last item, whose action is asked for
        elif self.form == MERGED:
            events = 2 * events  # each has a candidate behind it
        return events + self.series

    def _transformer_faults(self) -> list[str]:
        """A baseline is what its name says: what would make it something else is refused, not left out in silence."""
        needed = {
            "attention.kind": (self.attention.kind, "softmax"),
            "attention.scale": (self.attention.scale, "sqrt"),
            "pooled_norm": (self.pooled_norm, True),
            "gate": (self.gate, True),
            "recompute": (self.recompute, False),
            "places": (self.places, False),
            **{
                f"biases.{name}": (getattr(self.biases, name), False)
                for name in ("alibi", "time", "duration", "organic", "position")
            },
        }
        faults = [
            f"{key}={plain(value)} does not go with architecture={self.architecture}: set {key}={plain(wanted)}"
            for key, (value, wanted) in needed.items()
            if value != wanted
        ]
        if self.architecture == "transformer++" and self.head_dim_qk % 2:
            faults.append(
                f"head_dim_qk={self.head_dim_qk} is odd, but architecture=transformer++ turns queries and keys in "
                f"pairs of columns: set an even one"
            )
        return faults


@dataclass(frozen=True)
class Vocabulary:
    """Sizes that come from the data.

    Args:
        levels: code levels of an item, C.
        codes: codes per level, V.
        artists: known artists, A.
        event_types: kinds of events.
        items: items of the catalogue, N; 0 where nobody has said, which is enough without a table of items.
    """

    levels: int
    codes: int
    artists: int
    event_types: int
    items: int = 0

    def __post_init__(self) -> None:
        """Check that every table but the artists' and the items' has rows."""
        assert min(self.levels, self.codes, self.event_types) >= 1, self
        assert min(self.artists, self.items) >= 0, self
