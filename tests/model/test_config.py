from __future__ import annotations

import pytest

from common.config import resolve, to_yaml
from common.errors import InputError
from model.config import AttentionConfig, BiasConfig, ModelConfig


def test_combinations_without_meaning_are_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="normalises by itself"):
        AttentionConfig(kind="softmax", normalise_by="length")
    with pytest.raises(InputError) as caught:
        ModelConfig(dropout=1.0, input_dropout=2.0, biases=BiasConfig(time_buckets=65))
    assert len(caught.value.faults) == 3


def test_reads_from_a_command_line_with_all_faults_at_once() -> None:
    cfg = resolve(ModelConfig, "train", None, ["attention.kind=softmax", "biases.time=false", "width=128"])
    assert (cfg.attention.kind, cfg.biases.time, cfg.width) == ("softmax", False, 128)
    assert "head_dim_qk" in to_yaml(cfg)
    with pytest.raises(InputError) as caught:
        resolve(ModelConfig, "train", None, ["attention.kind=sofmax", "heads=0", "biases.tim=1"])
    assert len(caught.value.faults) == 3
