"""Has a training step become slower than it was? `python -m benchmarks.floor [--keep]`

Runs `benchmarks.train_step --quick` and holds its ratios, which hardly depend on the machine, against those kept in
`results/train_step_quick.json`. One that is worse by more than a third is measured once more, and if the better of the
two is still worse, the status is 3 and one message says which. `--keep` writes what was found instead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness import RESULTS, ROOT

KEPT = RESULTS / "train_step_quick.json"
WORSE = 1 / 3
MORE_IS_BETTER = ("gemm_share_fp32", "scaling_of_possible", "speedup_vs_naive")
GOOD_ENOUGH: Mapping[str, float] = {"padding_share": 0.02, "data_wait_share": 0.01}
"""Less is better, and up to so much nothing is said: a third of nearly nothing is nothing."""
STATUS = 3


def measured() -> dict[str, float]:
    """The figures of a quick run."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--quick"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: found[name] for name in (*MORE_IS_BETTER, *GOOD_ENOUGH)}


def worse(kept: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    """What has fallen by more than a third, in words."""
    fallen = [
        f"{name} is {found[name]:.4g}, was {kept[name]:.4g}"
        for name in MORE_IS_BETTER
        if found[name] < kept[name] * (1 - WORSE)
    ]
    risen = [
        f"{name} is {found[name]:.4g}, was {kept[name]:.4g}, may be {enough:.4g}"
        for name, enough in GOOD_ENOUGH.items()
        if found[name] > max(kept[name] * (1 + WORSE), enough)
    ]
    return fallen + risen


def better(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """The better of two measurements, figure by figure."""
    return {name: (max if name in MORE_IS_BETTER else min)(one[name], other[name]) for name in one}


def check(kept: Mapping[str, float]) -> list[str]:
    """What is worse, of two measurements where the first finds anything."""
    found = measured()
    if not worse(kept, found):
        return []
    print(f"worse at first: {'; '.join(worse(kept, found))}; measuring once more", file=sys.stderr, flush=True)
    return worse(kept, better(found, measured()))


def main(argv: Sequence[str] | None = None, kept: Path = KEPT) -> int:
    """Check, or keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="write what was found, to be held against from now on")
    if parser.parse_args(argv).keep:
        kept.write_text(json.dumps(measured(), indent=2) + "\n", encoding="utf-8")
        return 0
    fallen = check(json.loads(kept.read_text(encoding="utf-8")))
    if not fallen:
        return 0
    print(f"floor: training steps have become worse by more than a third: {'; '.join(fallen)}", file=sys.stderr)
    return STATUS


if __name__ == "__main__":
    sys.exit(main())
