from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common.config import from_plain, resolve, to_plain, to_yaml
from common.errors import InputError
from data.ranking.config import FORMS, ActionsConfig
from model.config import AttentionConfig, BiasConfig, HeadsConfig, ItemTableConfig, ModelConfig, Vocabulary
from tests.model.test_recommender import BASELINE

ARCHITECTURES = Path(__file__).parents[2] / "configs" / "architectures"


def faults_of(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        resolve(ModelConfig, "train", None, overrides)
    return caught.value.faults


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


@pytest.mark.parametrize(("backend", "kind", "other"), [("flex", "softmax", "silu"), ("triton", "silu", "softmax")])
def test_a_backend_of_one_kind_refuses_the_other(backend: str, kind: str, other: str) -> None:
    assert AttentionConfig(backend=backend, kind=kind).backend == backend
    (fault,) = faults_of(f"attention.backend={backend}", f"attention.kind={other}")
    assert fault.startswith(f"attention.backend={backend} computes kind={kind} alone, not kind={other}")
    assert "backend=jagged" in fault


def test_flex_has_no_dropout() -> None:
    (fault,) = faults_of("attention.backend=flex", "attention.kind=softmax", "attention.dropout=0.1")
    assert fault.startswith("attention.dropout=0.1: backend=flex cannot drop weights")
    for backend, kind in (("jagged", "softmax"), ("dense", "silu"), ("triton", "silu")):
        assert AttentionConfig(backend=backend, kind=kind, dropout=0.1).dropout == 0.1


def test_faults_of_one_group_come_together() -> None:
    faults = faults_of(
        "attention.backend=triton", "attention.kind=softmax", "attention.normalise_by=length", "attention.dropout=1"
    )
    assert [fault.split("=")[0] for fault in faults] == [
        "attention.normalise_by",
        "attention.backend",
        "attention.dropout",
    ]
    assert len(faults_of("attention.soft_cap=-1", "attention.dropout=-0.1", "biases.position_buckets=0")) == 3


def test_a_baseline_is_what_its_name_says() -> None:
    """Everything that would make it something else is named at once, with the value to set."""
    faults = faults_of("architecture=sasrec", "recompute=true", "biases.position=true")
    wanted = ["attention.kind=softmax", "attention.scale=sqrt", "recompute=false"]
    wanted += [f"biases.{name}=false" for name in ("alibi", "time", "duration", "organic", "position")]
    assert [fault.rsplit("set ", 1)[1] for fault in faults] == wanted
    settings = [f"architecture={name}" for name in ("sasrec",)] + wanted
    assert resolve(ModelConfig, "train", None, settings).architecture == "sasrec"
    assert faults_of(*settings, "architecture=transformer++", "head_dim_qk=31")[0].startswith("head_dim_qk=31 is odd")
    assert resolve(ModelConfig, "train", None, [*settings, "head_dim_qk=31"]).head_dim_qk == 31


def test_a_model_has_codes_or_items_or_both() -> None:
    (fault,) = faults_of("items.only=true")
    assert fault.startswith("items.only=true leaves out the codes, and kind=none the items")
    for kind in ("vocabulary", "hashed"):
        cfg = resolve(ModelConfig, "train", None, ["items.only=true", f"items.kind={kind}"])
        assert (cfg.items.kind, cfg.items.only) == (kind, True)
    assert "vocabulary" in faults_of("items.kind=table")[0]


LIKE = 'output.actions.tasks=["like: event_type is like"]'


def test_a_model_that_predicts_actions_says_which() -> None:
    (fault,) = faults_of("output.kind=actions")
    assert fault.startswith("output.actions.tasks is empty, and kind=actions predicts nothing else: name at least one")
    for form in ("played_ratio >= 50", "event_type is like", "played_ratio / 100", "event_type number"):
        assert form in fault
    cfg = resolve(ModelConfig, "train", None, ["output.kind=actions", LIKE, "output.actions.form=merged"])
    assert (cfg.output.kind, cfg.form, cfg.output.actions.loss_weights) == ("actions", "merged", (1.0,))
    assert from_plain(ModelConfig, to_plain(cfg), "manifest.json") == cfg
    assert (ModelConfig().form, HeadsConfig(kind="items").actions) == (None, ActionsConfig())


def test_options_of_another_output_are_refused_all_at_once() -> None:
    faults = faults_of(
        "output.kind=actions",
        *(f"output.{key}" for key in ("gated=false", "logit_scale=3", "temperature=1", "chunk_tokens=9")),
    )
    assert [fault.split("=")[0] for fault in faults] == [
        *(f"output.{key}" for key in ("gated", "logit_scale", "temperature", "chunk_tokens")),
        "output.actions.tasks is empty, and kind",
    ]
    assert faults[0] == "output.gated=false means nothing with kind=actions: leave it out"
    for kind in ("codes", "items"):
        found = faults_of(f"output.kind={kind}", "output.actions.form=merged", "output.actions.hidden=8", LIKE)
        assert [fault.split("=")[0] for fault in found] == [
            f"output.actions.{key}" for key in ("form", "tasks", "hidden")
        ]
        assert found[0] == (
            f"output.actions.form=merged means nothing with kind={kind}: leave it out, or set kind=actions"
        )
    assert len(faults_of("output.gated=false", "output.kind=items", "output.temperature=0", "items.kind=hashed")) == 2


@pytest.mark.parametrize("items", ["none", "vocabulary", "hashed"])
@pytest.mark.parametrize("architecture", ["hstu", "sasrec", "transformer++"])
def test_actions_go_with_every_architecture_and_table(architecture: str, items: str) -> None:
    cfg = ModelConfig(
        architecture=architecture,
        items=ItemTableConfig(kind=items),
        output=HeadsConfig(kind="actions", actions=ActionsConfig(tasks=["rating: event_type number"])),
        **({} if architecture == "hstu" else BASELINE),
    )
    assert cfg.max_tokens == 401


def test_tokens_and_places_of_the_longest_window() -> None:
    found = {}
    for form in FORMS:
        actions = ActionsConfig(form=form, tasks=["like: event_type is like"])
        cfg = ModelConfig(max_history=50, output=HeadsConfig(kind="actions", actions=actions))
        found[form] = cfg.max_tokens, cfg.max_places
    assert found == {"interleaved": (101, 101), "merged": (100, 51), "interactions": (50, 50)}
    for form, (tokens, places) in found.items():
        actions = ActionsConfig(form=form, tasks=["like: event_type is like"], series=7)
        cfg = ModelConfig(max_history=50, output=HeadsConfig(kind="actions", actions=actions))
        assert (cfg.max_tokens, cfg.max_places, cfg.series) == (tokens + 7, places + 7, 7)
    for kind in ("codes", "items"):
        cfg = ModelConfig(max_history=50, items=ItemTableConfig(kind="vocabulary"), output=HeadsConfig(kind=kind))
        assert (cfg.max_tokens, cfg.max_places) == (50, 50)


def test_a_configuration_of_before_these_options_reads_as_it_was() -> None:
    """Manifests of checkpoints hold the options there were."""
    plain = to_plain(ModelConfig(width=48))
    for name in ("architecture", "qk_norm", "residual_scale", "recompute", "transformer", "items"):
        del plain[name]
    for name in ("soft_cap", "dropout"):
        del plain["attention"][name]
    del plain["biases"]["position"], plain["biases"]["position_buckets"], plain["output"]["actions"]
    assert from_plain(ModelConfig, plain, "manifest.json") == ModelConfig(width=48)
    assert Vocabulary(**{"levels": 3, "codes": 7, "artists": 20, "event_types": 4}).items == 0


@pytest.mark.parametrize("file", sorted(ARCHITECTURES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_architecture_file_is_a_configuration(file: Path) -> None:
    sections = yaml.safe_load(file.read_text())
    assert list(sections) == ["train"]
    cfg = from_plain(ModelConfig, sections["train"]["model"], str(file))
    assert cfg != ModelConfig(), "it changes something"


def test_there_are_the_baselines() -> None:
    names = {file.stem for file in ARCHITECTURES.glob("*.yaml")}
    assert {"sasrec", "transformer++", "hstu-softmax", "hstu-softmax-no-biases", "hstu-no-biases"} <= names
