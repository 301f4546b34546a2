"""How well any model can do on the stream of configs/dirichlet.yaml: HR@10 of predictors that know its process.

    python -m benchmarks.stream_ceiling [--quick]

Fresh records of the stream's last tenth. `knows all` is given a record's α, its prior over categories and the category
of every item, so no model can beat it; `counts` is given the items' categories and counts those of the record so far.
Both rank items by the probability of their category over its items in use, and are credited with the true probability
of what they rank first, not with one draw from it.

R records · M categories of a record · C categories · N items.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import yaml

from benchmarks.harness import ROOT, Findings, run, table
from data.synthetic.config import SynthesizeConfig
from data.synthetic.dirichlet import ALPHA_RANGE, draw_categories, draw_priors, draw_slots, items_in_use

DEPTH = 10
CONFIG = "configs/dirichlet.yaml"


def main(quick: bool, folder: Path, findings: Findings) -> None:
    """The stream as configured, and with fewer categories."""
    del folder
    keys = yaml.safe_load((ROOT / CONFIG).read_text(encoding="utf-8"))["synthesize"]
    rows = []
    for categories in (100, 20):
        best, counted = ceilings(SynthesizeConfig(**keys, categories=categories), 500 if quick else 10_000)
        rows.append([categories, f"{best:.4f}", f"{counted:.4f}"])
        findings.figures |= {f"ceiling_{categories}_categories": best, f"counting_{categories}_categories": counted}
    text = table(["categories", f"knows all, HR@{DEPTH}", "counts"], rows)
    findings.add("Ceilings", f"{text}\n\n{keys['items']:,} items; the other keys as in {CONFIG}.")


def ceilings(config: SynthesizeConfig, records: int, seed: int = 0) -> tuple[float, float]:
    """Expected HR@10 of the last item of a record, of the predictor that knows all and of the one that counts."""
    random = np.random.default_rng(seed)
    record_R = np.sort(random.integers(int(0.9 * config.records), config.records, records))
    category_N, used_R = draw_categories(config), items_in_use(config, record_R)
    out_RC = np.stack([np.bincount(category_N[:used], minlength=config.categories) for used in used_R])
    chosen_RM, prior_RM = draw_priors(out_RC > 0, random)
    alpha_R1 = random.uniform(*ALPHA_RANGE, records)[:, None]
    seen_RL = draw_slots(prior_RM, alpha_R1[:, 0], config.record_length, random)[:, :-1]
    count_RM = (seen_RL[:, :, None] == np.arange(chosen_RM.shape[1])).sum(axis=1)
    true_RM = (alpha_R1 * prior_RM + count_RM) / (alpha_R1 + seen_RL.shape[1])
    items_RM = np.take_along_axis(out_RC, chosen_RM, axis=1)
    return expected_hits(true_RM, true_RM, items_RM), expected_hits(count_RM.astype(float), true_RM, items_RM)


def expected_hits(believed_RM: np.ndarray, true_RM: np.ndarray, items_RM: np.ndarray) -> float:
    """True probability that the item lies among the ten that are ranked first by what is believed, mean over records.

    Args:
        believed_RM, true_RM: of each category of a record; believed in any unit.
        items_RM: items in use of each.
    """
    order_RM = np.argsort(-believed_RM / items_RM, axis=1, kind="stable")
    items_RM, true_RM = (np.take_along_axis(x_RM, order_RM, axis=1) for x_RM in (items_RM, true_RM))
    before_RM = np.cumsum(items_RM, axis=1) - items_RM
    taken_RM = np.clip(DEPTH - before_RM, 0, items_RM)
    return float((true_RM * taken_RM / items_RM).sum(axis=1).mean())


if __name__ == "__main__":
    sys.exit(run("stream_ceiling", main))
