"""Options of a training run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from common.config import REQUIRED, group, option
from common.errors import InputError
from data.negatives import NegativesConfig
from data.sequences import PLANS
from data.stochastic_length import StochasticLength
from model.config import ModelConfig
from sharding.planning.policy import ShardingConfig
from sharding.ranks.config import WatchConfig
from trainer.checkpoint.config import CheckpointConfig


@dataclass
class BatchConfig:
    """What a step reads."""

    tokens: int = option(4096, "token budget of one bin; at least model.max_history", minimum=1)
    bins: int = option(2, "bins in a global step; the number of ranks must divide it", minimum=1)
    windows: str = option(
        "newest",
        "newest: a user's newest max_history events; tiled: the whole history, cut into windows of that length; "
        "sampled: each prefix of a user's n with probability 1/n; stream: one pass in time order, an epoch a period",
        choices=PLANS,
    )
    period_seconds: int = option(86_400, "windows=stream: length of a period", minimum=1)
    workers: int = option(0, "processes that make batches ahead, for each rank; 0 makes them in the step", minimum=0)
    distinct: bool = option(
        True, "ask for each item once a batch, whatever the number of its events; false asks once an event, to compare"
    )
    predict_first: bool = option(
        False,
        "windows=stream, model.output.kind=actions: predict each period before it is learnt from, as in the HSTU "
        "paper; figures go to stream.json",
    )
    shuffle_ties: bool = option(
        False, "order events of one user and one second anew in each epoch, where the log's order means nothing"
    )
    negatives: NegativesConfig = group(NegativesConfig, "what targets are held against, with model.output.kind=items")


@dataclass
class OptimizerConfig:
    """How parameters move."""

    dense: str = option(
        "adamw",
        "adamw: all dense parameters; muon: Muon for the matrices inside the blocks, AdamW for the rest",
        choices=("adamw", "muon"),
    )
    learning_rate: float = option(1e-3, "AdamW, dense parameters", minimum=0)
    muon_learning_rate: float = option(0.02, "Muon, matrices inside the blocks", minimum=0)
    weight_decay: float = option(0.0, "AdamW and Muon, matrices only", minimum=0)
    accumulate: int = option(1, "batches between steps of the dense optimizers, on the mean gradient", minimum=1)
    beta2: float = option(0.98, "AdamW's second beta", minimum=0)
    sparse_learning_rate: float = option(0.02, "row-wise Adagrad, embedding tables", minimum=0)
    sparse_epsilon: float = option(1e-8, "row-wise Adagrad's epsilon", minimum=0)
    warmup_steps: int = option(50, "steps over which both rates rise from zero", minimum=0)
    schedule: str = option("cosine", "how both rates fall to zero at the end", choices=("cosine", "constant"))
    clip_norm: float = option(0.0, "largest norm of the dense gradient; 0 does not clip", minimum=0)


@dataclass
class TrainConfig:
    """One training run."""

    run: str = option(REQUIRED, "folder of the run: configuration, metrics, checkpoints")
    store: str = option(REQUIRED, "event store, made by data.prepare")
    codes: str = option(REQUIRED, "code table, made by semantic_ids.fit")
    seed: int = option(0, "decides initial values, order of users and dropout", minimum=0)
    epochs: int = option(20, "passes over the training windows; with batch.windows=stream, periods at most", minimum=1)
    max_steps: int = option(0, "end after this many steps; 0 trains all epochs", minimum=0)
    validate_every: int = option(1, "epochs between validations, each followed by a checkpoint", minimum=1)
    patience: int = option(0, "end after this many validations without improvement; 0 never does", minimum=0)
    log_every: int = option(10, "steps between lines of metrics.jsonl", minimum=1)
    resume: str = option(
        "false",
        "true: go on from the run's newest whole checkpoint; auto: the same if there is one, else begin, as under "
        "torchrun --max-restarts or a queue that starts jobs again",
        choices=("false", "true", "auto"),
    )
    overwrite: bool = option(False, "replace what an earlier run left in the folder")
    debug: bool = option(
        False,
        "look for numbers that are not finite and name the module, step and rank they come from; steps are slower; "
        "sets log_every=1, batch.workers=0 and, with resume=false, batch.tokens to one window's; may be switched "
        "on to resume",
    )
    start_from: str = option(
        "", "run, or folder or URL of checkpoints, whose parameters (not its optimizer or place) a new run starts from"
    )
    start_checkpoint: str = option("best", "start_from: best, latest, or the name of a checkpoint")
    start_parts: str = option("all", "start_from: what to take", choices=("all", "tables", "dense"))
    code_init: str = option(
        "codebooks",
        "where code embeddings and output heads start; codebooks: from the item vectors' quantiser, so that similar "
        "codes start alike; random: from noise",
        choices=("codebooks", "random"),
    )
    model: ModelConfig = group(ModelConfig, "the model")
    batch: BatchConfig = group(BatchConfig, "batches")
    stochastic_length: StochasticLength = group(StochasticLength, "thinning of long histories, a step at a time")
    optimizer: OptimizerConfig = group(OptimizerConfig, "optimizers")
    sharding: ShardingConfig = group(ShardingConfig, "where tables lie")
    checkpoint: CheckpointConfig = group(CheckpointConfig, "checkpoints")
    watch: WatchConfig = group(WatchConfig, "watching over the ranks")

    def __post_init__(self) -> None:
        faults = []
        if self.batch.tokens < self.model.max_tokens:
            faults.append(
                f"`batch.tokens` is {self.batch.tokens}, less than the {self.model.max_tokens} tokens of a window of "
                f"`model.max_history` {self.model.max_history}: a user's whole window must fit into one bin"
            )
        if self.model.output.kind != "items" and self.batch.negatives != NegativesConfig():
            faults.append(
                f"`batch.negatives` means nothing with `model.output.kind` {self.model.output.kind}, which holds no "
                f"item against others: leave it out, or set model.output.kind=items"
            )
        if self.batch.predict_first and (self.batch.windows, self.model.output.kind) != ("stream", "actions"):
            faults.append(
                f"`batch.predict_first` is true, which needs batch.windows=stream and model.output.kind=actions; they "
                f"are {self.batch.windows} and {self.model.output.kind}"
            )
        if self.checkpoint.values == "int4" and self.model.width % 2:
            faults.append(f"`checkpoint.values` is int4, which needs an even `model.width`; it is {self.model.width}")
        if self.start_from and self.resume == "true":
            faults.append("`start_from` begins a run and `resume=true` goes on with one; give one of the two")
        if faults:
            raise InputError(*faults)
        if self.debug:
            self.log_every = 1
            self.batch = dataclasses.replace(self.batch, workers=0)
            if self.resume == "false":  # else the batches must stay those of the run
                self.batch.tokens = self.model.max_tokens
