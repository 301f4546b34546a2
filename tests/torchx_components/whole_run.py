"""The file of a small run from raw log to report, with a section for every stage and component."""

from __future__ import annotations

from pathlib import Path

from tests.yambda_example import write_yambda_example

CONFIG = """
prepare:
  source: yambda
  path: {folder}/yambda
  size: 50m
  kind: multi_event  # five event types: no rank has an empty shard of their table
  out: {folder}/store
fit_ids:
  store: ${{prepare.out}}
  out: {folder}/codes
  levels: 2
  codes: 8
  iterations: 2
encode_ids:
  store: ${{prepare.out}}
  codes: ${{fit_ids.out}}
  out: {folder}/given
plan:
  store: ${{prepare.out}}
  codes: ${{fit_ids.out}}
  model: ${{train.model}}
  topology: cpu
  out: {folder}/plan
train:
  run: {folder}/run
  store: ${{prepare.out}}
  codes: ${{fit_ids.out}}
  epochs: 1
  model: {{width: 8, blocks: 1, heads: 1, head_dim_qk: 8, head_dim_v: 8, max_history: 16}}
  batch: {{tokens: 64}}
evaluate:
  run: ${{train.run}}
  bootstrap: 10
  engines: [exact]
"""


def write_whole_run(folder: Path) -> Path:
    """A raw log and the file of a run over it; returns the file."""
    write_yambda_example(folder / "yambda")
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(folder=folder))
    return path
