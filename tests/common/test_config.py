from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common.config import (
    REQUIRED,
    SECTIONS,
    describe_keys,
    from_plain,
    group,
    load_resolved,
    option,
    parse,
    resolve,
    to_plain,
    to_yaml,
)
from common.errors import InputError


@dataclass
class Inner:
    kind: str = option("silu", "which kind", choices=("silu", "softmax"))
    share: float = option(0.5, "a share", minimum=0)

    def __post_init__(self) -> None:
        if self.kind == "softmax" and self.share == 0:
            raise InputError("share=0 means nothing with kind=softmax")


@dataclass
class Outer:
    width: int = option(64, "how wide", minimum=1)
    inner: Inner = group(Inner, "the inner group")

    def __post_init__(self) -> None:
        if self.width == 13:
            raise ValueError("13 brings bad luck")


@dataclass
class Config:
    run: str = option(REQUIRED, "folder of the run")
    epochs: int = option(20, "passes", minimum=1)
    rate: float = option(1e-3, "learning rate", minimum=0)
    resume: bool = option(False, "go on")
    path: str | None = option(None, "where, if anywhere")
    seed: int | None = option(None, "a seed", minimum=0)
    sizes: list[int] = option([1, 2], "some sizes", minimum=0)
    names: list[str] = option([], "some names", choices=("a", "b"))
    outer: Outer = group(Outer, "the outer group")

    def __post_init__(self) -> None:
        faults = []
        if self.run == "bad":
            faults.append("`run` is bad")
        if self.epochs > self.outer.width:
            faults.append("`epochs` is above `outer.width`")
        if faults:
            raise InputError(*faults)


def configured(*overrides: str, file: Path | None = None) -> Config:
    return resolve(Config, "train", file, overrides)


def faults_of(*overrides: str, file: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        configured(*overrides, file=file)
    return caught.value.faults


@pytest.fixture
def yaml_file(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


# ── where values come from ───────────────────────────────────────────────────────────────────────────────


def test_defaults_then_file_then_overrides(yaml_file: Any) -> None:
    file = yaml_file("train: {run: a, epochs: 5, outer: {width: 8, inner: {share: 0.25}}}")
    assert configured("epochs=6", "outer.inner.kind=softmax", file=file) == Config(
        run="a", epochs=6, outer=Outer(width=8, inner=Inner(kind="softmax", share=0.25))
    )


def test_the_last_override_wins() -> None:
    assert configured("run=a", "epochs=3", "epochs=4").epochs == 4


def test_lists_are_replaced_not_merged(yaml_file: Any) -> None:
    assert configured("run=a", file=yaml_file("train: {sizes: [7]}")).sizes == [7]
    assert configured("run=a", "sizes=[3, 4, 5]").sizes == [3, 4, 5]
    assert configured("run=a", "sizes=[]").sizes == []


def test_default_lists_are_not_shared() -> None:
    configured("run=a").sizes.append(9)
    assert configured("run=a").sizes == [1, 2]


def test_a_reference_to_another_section(yaml_file: Any) -> None:
    file = yaml_file(
        "prepare: {out: store}\ntrain: {run: '${prepare.out}-run', epochs: '${evaluate.n}'}\nevaluate: {n: 3}"
    )
    config = configured(file=file)
    assert (config.run, config.epochs) == ("store-run", 3)


def test_other_sections_need_not_resolve(yaml_file: Any) -> None:
    assert configured(file=yaml_file("train: {run: a}\nevaluate: {run: '${prepare.out}'}")).run == "a"


def test_a_broken_reference_is_named(yaml_file: Any) -> None:
    (fault, *_) = faults_of("run=a", file=yaml_file("train: {path: '${prepare.out}'}"))
    assert "'prepare.out' not found" in fault
    assert "run.yaml" in fault


# ── types ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1E5", 1e5), ("3", 3.0), (".5", 0.5), ("1.0e-8", 1e-8)])
def test_floats(text: str, value: float, yaml_file: Any) -> None:
    for config in (configured("run=a", f"rate={text}"), configured(file=yaml_file(f"train: {{run: a, rate: {text}}}"))):
        assert config.rate == value
        assert isinstance(config.rate, float)


def test_booleans(yaml_file: Any) -> None:
    assert configured("run=a", "resume=true").resume is True
    assert configured("run=a", "resume=False").resume is False
    assert configured(file=yaml_file("train: {run: a, resume: yes}")).resume is True


def test_null() -> None:
    assert configured("run=a", "path=x", "path=null", "seed=3", "seed=null") == Config(run="a")
    assert configured("run=null").run == "null"  # a name like any other where nothing is not allowed


@pytest.mark.parametrize(
    "text", ["007", "2024", "1e-3", "12:30", "yes", "1_000", "~", "[1]", "{a: 1}", "a=b", "'q'", " x "]
)
def test_names_on_the_command_line_stay_as_typed(text: str) -> None:
    assert configured(f"run={text}", f"path={text}") == Config(run=text, path=text)


def test_integers_on_the_command_line_are_decimal() -> None:
    assert configured("run=a", "seed=010").seed == 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=three", "`epochs` is 'three', expected int"),
        ("epochs=2.0", "`epochs` is '2.0', expected int"),
        ("epochs=", "`epochs` is '', expected int"),
        ("epochs=true", "`epochs` is 'true', expected int"),
        ("epochs=null", "`epochs` is 'null', expected int"),
        ("rate=fast", "`rate` is 'fast', expected finite float"),
        ("rate=nan", "`rate` is 'nan', expected finite float"),
        ("rate=inf", "`rate` is 'inf', expected finite float"),
        ("resume=1", "`resume` is '1', expected bool"),
        ("resume=maybe", "`resume` is 'maybe', expected bool"),
        ("seed=x", "`seed` is 'x', expected int | None"),
        ("sizes=[1, x]", "`sizes` is '[1, x]', expected list[int]"),
        ("sizes=3", "`sizes` is '3', expected list[int]"),
        ("sizes=[1", "`sizes` is '[1', expected list[int]"),
        ("sizes=[!!python/object/apply:os.abort []]", "expected list[int]"),
    ],
)
def test_wrong_types_on_the_command_line(override: str, message: str) -> None:
    (fault,) = faults_of("run=a", override)
    assert fault.startswith("command line: ")
    assert message in fault


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run: 2024", "`run` is 2024, expected str; put it in quotes"),
        ("run: yes", "`run` is True, expected str; put it in quotes"),
        ("path: 1.5", "`path` is 1.5, expected str | None; put it in quotes"),
        ("epochs: '3'", "`epochs` is '3', expected int"),
        ("epochs: true", "`epochs` is True, expected int"),
        ("epochs: 3.5", "`epochs` is 3.5, expected int"),
        ("rate: .nan", "`rate` is nan, expected finite float"),
        ("resume: 1", "`resume` is 1, expected bool"),
        ("resume: 'true'", "`resume` is 'true', expected bool"),
        ("epochs: null", "`epochs` is None, expected int"),
        ("epochs: [1]", "`epochs` is [1], expected int"),
        ("run: {a: 1}", "`run` is {'a': 1}, expected str"),
        ("sizes: [1, null]", "`sizes` is [1, None], expected list[int]"),
        ("outer: 3", "`outer` is a group of keys; set one of them, e.g. `outer.width`"),
        ("outer: {inner: null}", "`outer.inner` is a group of keys; set one of them, e.g. `outer.inner.kind`"),
    ],
)
def test_wrong_types_in_a_file(line: str, message: str, yaml_file: Any) -> None:
    file = yaml_file(f"train:\n  {line}\n")
    fault = faults_of(*([] if line.startswith("run") else ["run=a"]), file=file)[0]
    assert fault.startswith(f"{file}: ")
    assert message in fault


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("epoch", "`epochs`"),
        ("width", "`outer.width`"),
        ("inner.kind", "`outer.inner.kind`"),
        ("model.share", "`outer.inner.share`"),
        ("outer.widht", "`outer.width`"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    (fault,) = faults_of("run=a", f"{key}=1")
    assert fault.startswith(f"command line: unknown key `{key}`; did you mean {nearest}")


@pytest.mark.parametrize("key", ["zzz", "run.x", "sizes[0]", "__class__", "outer..width", ".", "Ω"])
def test_hostile_keys_are_unknown(key: str) -> None:
    assert f"unknown key `{key}`" in faults_of("run=a", f"{key}=1")[0]


def test_all_faults_at_once(yaml_file: Any) -> None:
    file = yaml_file("train: {epoch: 3, rate: x, outer: {inner: {kind: silo, share: -1}}}\ntrian: {}")
    faults = faults_of("width=2", "epochs=0", "nonsense", "=3", file=file)
    assert faults == (
        f"{file}: unknown section `trian`; did you mean `train`?; sections are {', '.join(SECTIONS)}",
        "command line: `nonsense` is not of the form key=value",
        "command line: `=3` is not of the form key=value",
        f"{file}: unknown key `epoch`; did you mean `epochs`?",
        f"{file}: `rate` is 'x', expected finite float",
        "command line: unknown key `width`; did you mean `outer.width`?",
        "`run` is required: folder of the run",
        "`epochs` is 0, must be at least 1",
        "`outer.inner.kind` is 'silo', expected one of silu, softmax; did you mean `silu`?",
        "`outer.inner.share` is -1.0, must be at least 0",
    )


def test_rules_of_a_class_are_checked_when_its_values_are_sound() -> None:
    assert faults_of("run=bad", "epochs=65") == ("`run` is bad", "`epochs` is above `outer.width`")
    assert faults_of("run=a", "outer.inner.kind=softmax", "outer.inner.share=0") == (
        "outer.inner.share=0 means nothing with kind=softmax",
    )
    assert faults_of("run=a", "outer.width=13") == ("`outer`: 13 brings bad luck",)


def test_rules_hold_for_the_elements_of_a_list() -> None:
    assert faults_of("run=a", "sizes=[1, -1]", "names=[a, c]") == (
        "`sizes` is -1, must be at least 0",
        "`names` is 'c', expected one of a, b",
    )


def test_a_required_key_cannot_be_given_as_missing() -> None:
    assert faults_of("run=???") == ("`run` is required: folder of the run",)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no section `train`, which this command reads"),
        ("evaluate: {}", "has no section `train`, which this command reads"),
        ("train: 3", "section `train` holds 3, expected keys and values"),
        ("train: [run]", "section `train` holds ['run'], expected keys and values"),
        ("train: '${evaluate}'\nevaluate: {run: a}", "section `train` holds '${evaluate}'"),
        ("[1, 2]", "holds a list, expected keys and values"),
        ("just text", "unknown section `just text`"),
        ("train:\n  run: a\n  run: b\n", "found duplicate key run"),
        ("train: {run: a}\ntrain: {run: b}", "found duplicate key train"),
        ("train:\n  run: [a\n", "line 3"),
        ("train:\n\trun: a\n", "line 2"),
        ("train: {run: !!python/object/apply:os.abort []}", "could not determine a constructor"),
        ("1: {}\ntrain: {run: a}", "unknown section `1`"),
        ("null: {}\ntrain: {run: a}", "Incompatible key type"),
        ("train: {run: a, 1: b}", "unknown key `1`"),
        ("epochs: 3\ntrain: {run: a}", "unknown section `epochs`"),
    ],
)
def test_files_that_cannot_be_read(text: str, message: str, yaml_file: Any) -> None:
    file = yaml_file(text)
    fault = faults_of("run=a", file=file)[0]
    assert fault.startswith(f"{file}: ")
    assert message in fault
    assert "\n" not in fault


def test_a_section_with_nothing_in_it_is_all_defaults(yaml_file: Any) -> None:
    assert configured("run=a", file=yaml_file("train:\n")) == Config(run="a")


def test_a_missing_file_a_folder_and_bytes(tmp_path: Path) -> None:
    assert faults_of("run=a", file=tmp_path / "no.yaml") == (f"{tmp_path}/no.yaml: no such configuration file",)
    assert "Is a directory" in faults_of("run=a", file=tmp_path)[0]
    (tmp_path / "bytes.yaml").write_bytes(b"train: {run: \xff}")
    assert "not a readable configuration" in faults_of("run=a", file=tmp_path / "bytes.yaml")[0]


# ── interpolation ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:SECRET}",
        "${oc.env:SECRET,x}",
        "${oc.decode:'1'}",
        "a${oc.create:[1]}",
        "${train.${run}}",
        "\\${run}",
    ],
)
def test_resolvers_are_refused_in_files(value: str, yaml_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    # Anywhere in the file, in lists too, and in sections that are not read.
    for text in (
        f"train: {{run: {json.dumps(value)}}}",
        f"train: {{run: a, names: [{json.dumps(value)}]}}",
        f"train: {{run: a}}\nprepare: {{x: {json.dumps(value)}}}",
    ):
        faults = faults_of(file=yaml_file(text))
        assert "only ${section.key} is replaced" in faults[0]
        assert "hush" not in "".join(faults)


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "${outer.width}", "x${epochs}"])
def test_nothing_is_replaced_on_the_command_line_or_in_a_manifest(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    (fault, *_) = faults_of(f"run={value}")
    assert fault == f"command line: `run` is {value!r}: ${{…}} is not replaced here; write the value itself"
    with pytest.raises(InputError, match=r"manifest\.json: `run`"):
        from_plain(Config, {"run": value}, "manifest.json")


@pytest.mark.parametrize("value", ["${", "${a b}"])
def test_references_that_are_none(value: str, yaml_file: Any) -> None:
    assert "not a readable configuration" in faults_of(file=yaml_file(f"train: {{run: '{value}'}}"))[0]


def test_references_in_a_circle(yaml_file: Any) -> None:
    assert (
        "not a readable configuration"
        in faults_of(file=yaml_file("train: {run: '${train.path}', path: '${train.run}'}"))[0]
    )


# ── writing and reading back ─────────────────────────────────────────────────────────────────────────────

texts = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "${" not in text and text != REQUIRED)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    run=texts,
    path=st.none() | texts,
    rate=st.floats(0, allow_infinity=False),
    seed=st.none() | st.integers(0),
    sizes=st.lists(st.integers(0)),
)
@example(run="007", path="null", rate=1e-8, seed=0, sizes=[])
@example(run="yes", path="12:30", rate=1e300, seed=None, sizes=[1])
@example(run="1e-3", path="2024-01-01", rate=1.0, seed=2**63, sizes=[])
def test_a_resolved_configuration_reads_back_equal(
    tmp_path: Path, run: str, path: str | None, rate: float, seed: int | None, sizes: list[int]
) -> None:
    config = Config(run=run, path=path, rate=rate, seed=seed, sizes=sizes)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8", newline="")
    assert load_resolved(Config, tmp_path / "config.yaml") == config
    assert from_plain(Config, to_plain(config), "a manifest") == config


def test_a_manifest_is_checked_like_a_file() -> None:
    with pytest.raises(InputError) as caught:
        from_plain(Config, {"run": 3, "outer": {"widht": 3}}, "m.json")
    assert caught.value.faults == (
        "m.json: `run` is 3, expected str; put it in quotes",
        "m.json: unknown key `outer.widht`; did you mean `outer.width`?",
        "`run` is required: folder of the run",
    )


# ── help ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_lists_every_key() -> None:
    assert describe_keys(Outer) == (
        "keys:\n"
        "  width (int, default 64, at least 1)\n"
        "      how wide\n"
        "  inner.…: the inner group\n"
        '  inner.kind (str, default "silu", one of silu, softmax)\n'
        "      which kind\n"
        "  inner.share (finite float, default 0.5, at least 0)\n"
        "      a share"
    )
    described = describe_keys(Config)
    assert "  run (str, required)\n      folder of the run" in described
    assert "  path (str | None, default null)" in described
    assert "  sizes (list[int], default [1, 2], at least 0)" in described


def test_print_config_round_trips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse("x.y", "train", Config, ["--print-config", "run=a", "rate=1e-5", "outer.width=99"])
    assert left.value.code == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert load_resolved(Config, tmp_path / "config.yaml") == Config(run="a", rate=1e-5, outer=Outer(width=99))


@pytest.mark.parametrize(
    "argv", [["--epochs", "3"], ["run=a", "--nonsense"], ["--config"], ["--conf", "x.yaml"], ["-c", "x"]]
)
def test_unknown_flags_are_faults(argv: list[str]) -> None:
    with pytest.raises(InputError, match=r"^command line: .*; keys are given as key=value"):
        parse("x.y", "train", Config, argv)


def test_flags_and_keys_in_any_order(yaml_file: Any) -> None:
    file = yaml_file("train: {run: a}")
    config, flags = parse("x.y", "train", Config, ["epochs=3", "--config", str(file), "rate=-0", "--json", "sizes=[1]"])
    assert (config, flags.json) == (Config(run="a", epochs=3, rate=0.0, sizes=[1]), True)
