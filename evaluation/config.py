"""Options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import REQUIRED, group, option
from common.errors import InputError
from evaluation.baselines.config import BASELINES, BaselinesConfig
from evaluation.guardrails.config import GuardrailsConfig
from evaluation.outputs import EVENTS
from evaluation.requests import PROTOCOLS, YAMBDA
from model.config import BACKENDS
from serving.engines.faiss_indexes import IndexConfig
from sharding.ranks.config import TIMEOUT_S

VECTOR_ENGINES = ("faiss", "ivfpq", "hnsw")
ENGINES = ("exact", "bounded", "beam", *VECTOR_ENGINES, "hybrid")


@dataclass
class EvaluateConfig:
    """What to evaluate, and how."""

    run: str = option(REQUIRED, "folder of the trained run; metrics.json and report.html go there")
    checkpoint: str = option("best", "best (by validation), latest, or the name of one, e.g. step-00000120")
    checkpoints: str = option("", "folder or URL of the checkpoints, if not where the run's config.yaml says")
    events: str = option("test", "the held-out events to ask for", choices=EVENTS)
    protocol: str = option(
        "",
        "next: one request a user, for the next event; period: one for the whole held-out period; daily: one for each "
        "of its days; yambda: period, with Yambda's own metrics; '': what goes with the store's split",
        choices=("", *PROTOCOLS),
    )
    store: str = option("", "event store, if it has moved since training")
    codes: str = option("", "code table, if it has moved since training")
    tokens: int = option(4096, "token budget of a batch", minimum=1)
    tables: str = option(
        "auto",
        "whole: all tables on every rank, so that figures are the same to the last bit on any number of ranks; "
        "sharded: each rank its rows; auto: whole where they are smaller than whole_tables_gb",
        choices=("auto", "whole", "sharded"),
    )
    whole_tables_gb: float = option(4.0, "tables=auto: GB that tables may take on every rank", minimum=0)
    attention_backend: str = option(
        "",
        "attention backend, if not the one of the training: jagged where a model from GPUs is evaluated on a CPU",
        choices=("", *BACKENDS),
    )
    filter_history: bool | None = option(
        None,
        "return no item of the user's history; false where people return to what they know, as with music; null: true, "
        "but false with protocol=yambda",
    )
    deny: str = option("", "text file of items that nobody may be given, one id of the log a line")
    engines: list[str] = option(
        [],
        "how the model retrieves, the first is the one that choices are made by; exact: every item scored; bounded: "
        "the same lists without scoring what cannot be in them; beam: down the codes that items carry; faiss, ivfpq, "
        "hnsw: vectors, by an index; hybrid: beam and faiss, scored exactly; []: exact (bounded beyond 100,000 items), "
        "beam, faiss, hybrid, as far as the model has them",
        choices=ENGINES,
    )
    baselines: list[str] = option(["mostpop"], "fitted on the training events, to stand beside", choices=BASELINES)
    beams: int = option(200, "beams kept by the beam search, and the length of its lists", minimum=1)
    candidates: int = option(2, "hybrid: candidates for each place of the list, of each source", minimum=1)
    depth: int = option(0, "length of the lists; 0: 1,000, or all items where there are fewer", minimum=0)
    index: IndexConfig = group(IndexConfig, "ivfpq and hnsw")
    baseline: BaselinesConfig = group(BaselinesConfig, "how baselines are fitted")
    guardrails: GuardrailsConfig = group(GuardrailsConfig, "by what numbers guardrails judge")
    bootstrap: int = option(1000, "resamples of users for the intervals", minimum=1)
    seed: int = option(0, "of the resampling", minimum=0)
    against: str = option(
        "", "run, evaluated before on the same events, to compare with user by user; exit status 3 if this one is worse"
    )
    id_baseline: str = option(
        "", "run whose output are plain items, evaluated on the same events: what quantising items costs"
    )
    ablations: str = option("", "JSON page of benchmarks.ablate, whose table becomes part of the report")
    timeout_s: float = option(
        TIMEOUT_S, "under torchrun, seconds in a collective after which the job ends with status 4", minimum=1
    )
    restart: bool = option(False, "begin anew, even if an evaluation that was ended can be gone on with")

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        faults = []
        deepest = 100
        if 0 < self.depth < deepest:
            faults.append(
                f"`depth` is {self.depth}, but metrics look at the first {deepest}; give that many, or 0 for the usual"
            )
        if self.protocol == YAMBDA and self.filter_history:
            faults.append("`filter_history` is true, but protocol=yambda does not filter; leave it out or false")
        for name, given in (("engines", self.engines), ("baselines", self.baselines)):
            if len(set(given)) < len(given):
                faults.append(f"`{name}` names one twice: {', '.join(given)}")
        if faults:
            raise InputError(*faults)
