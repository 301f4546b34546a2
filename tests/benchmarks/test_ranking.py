"""Both protocols of the benchmark on a small log: everything is trained, predicted and compared as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import ranking
from benchmarks.harness import Findings, Measured
from data.event_store import EventStore
from evaluation.ranking.predictions import Predictions
from tests.conftest import Prepared
from tests.ranks import run_module
from tests.yambda_example import write_yambda_example

CONFIG = """
prepare: {{source: yambda, path: {raw}, kind: multi_event, out: unused, split: {{kind: leave-last-share}}}}
fit_ids: {{store: unused, out: unused, levels: 2, codes: 16}}
train:
  run: unused
  store: unused
  codes: unused
  epochs: 2
  validate_every: 2
  model:
    {{width: 8, blocks: 1, heads: 1, head_dim_qk: 8, head_dim_v: 8, max_history: 16, output: {{kind: actions, actions:
      {{tasks: ["liked: event_type is like", "rating: played_ratio / 100"], hidden: 4}}}}}}
  batch: {{tokens: 64, windows: tiled}}
"""


def test_every_model_is_measured_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_yambda_example(tmp_path / "raw", users=30, items=80)
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(raw=raw))

    def measure(command: list[str]) -> Measured:
        assert run_module(*command[1:]) == 0
        return Measured(1.0, 0.0, {})

    monkeypatch.setattr(ranking, "CONFIG", config)
    monkeypatch.setattr(ranking, "SEEDS", (0,))
    monkeypatch.setattr(ranking, "RESAMPLES", 20)
    monkeypatch.setattr(ranking, "measure", measure)
    findings = Findings()
    ranking.main(False, tmp_path, findings)
    for suffix in ("", "_stream"):
        for model in ("interleaved", "merged", "interactions", "logistic"):
            assert findings.figures[f"{model}_liked_ne{suffix}"] > 0
            assert findings.figures[f"{model}_rating_mse{suffix}"] > 0
        assert isinstance(findings.figures[f"target_aware_is_better{suffix}"], bool)
    assert [title for title, _ in findings.sections] == ["Split", "Stream"]
    assert all("interleaved against logistic" in text for _, text in findings.sections)


def test_the_regression_of_a_stream_learns_from_days_before_alone(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "PERIOD", 40_000)
    store = EventStore.open(prepared.store)
    learnt = np.concatenate(
        [
            np.arange(begin + 1, begin + end)
            for begin, end in zip(store.offsets, store.split().train_end_U, strict=False)
        ]
    )
    nothing = np.zeros((len(learnt), 1), np.float32)
    asked = Predictions(learnt, learnt, nothing, nothing)
    tasks = ["liked: event_type is like"]
    found = ranking._logistic_stream(store, tasks, asked)
    assert np.isfinite(found).all()
    columns = ranking.columns_of(store, tasks)
    last_day = columns.times_E[learnt] > columns.times_E[learnt].max() - 20_000
    columns.labels_ET[learnt[np.argmax(columns.times_E[learnt])]] *= -1
    monkeypatch.setattr(ranking, "columns_of", lambda *_: columns)
    np.testing.assert_array_equal(ranking._logistic_stream(store, tasks, asked), found)
    columns.labels_ET[learnt[np.argmin(columns.times_E[learnt])]] += 1
    assert (ranking._logistic_stream(store, tasks, asked) != found)[last_day].any(), "of earlier days it does learn"
