"""An entry point as a user meets it: exit statuses, what is printed, by whom."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.config import option, run_entry
from common.errors import InputError, Stopped
from common.faults import report_faults

ROOT = Path(__file__).parents[2]


@dataclass
class Config:
    x: int = option(1, "a number", minimum=0)


@pytest.fixture(autouse=True)
def outside_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)


def run(work: Callable[[Config], dict[str, Any]], *argv: str) -> int:
    return run_entry("room.entry", "train", Config, work, argv)


def summary(config: Config) -> dict[str, Any]:
    print("working")
    return {"x": config.x}


def faulty(config: Config) -> dict[str, Any]:
    raise InputError("first", "second")


def test_done(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(summary, "x=3") == 0
    assert capfd.readouterr() == ("working\n", "")
    assert run(summary, "x=3", "--json") == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1]) == {"x": 3}


def test_faults(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(summary, "x=-1") == 2
    assert capfd.readouterr() == ("", "room.entry: `x` is -1, must be at least 0\n")
    assert run(faulty) == 2
    assert capfd.readouterr() == ("", "room.entry: 2 faults\n  - first\n  - second\n")


def test_unknown_flags(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(summary, "--x", "3") == 2
    assert capfd.readouterr().err.startswith("room.entry: command line: unrecognized arguments: --x")


def test_help_is_headed_by_the_docstring_of_the_entry(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(summary, "--help")
    assert left.value.code == 0
    shown = capfd.readouterr().out
    assert "An entry point as a user meets it" in shown
    assert "  x (int, default 1, at least 0)\n      a number" in shown
    assert "its section `train` is read" in shown


def test_bugs_stay_tracebacks() -> None:
    def broken(config: Config) -> dict[str, Any]:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run(broken)


# ── the operating system ─────────────────────────────────────────────────────────────────────────────────


def test_a_missing_file_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(lambda config: {"": Path("/no/such/file").read_text()}) == 2
    assert capfd.readouterr().err == "room.entry: /no/such/file: No such file or directory\n"


def test_what_a_library_says_of_itself_is_told_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    def unreachable(_: Config) -> dict[str, Any]:
        raise OSError("s3://bucket/name: EndpointConnectionError: no answer")

    assert run(unreachable) == 2
    assert capfd.readouterr().err == "room.entry: s3://bucket/name: EndpointConnectionError: no answer\n"


def test_a_run_that_was_asked_to_stop_leaves_with_its_status(capfd: pytest.CaptureFixture[str]) -> None:
    def stopped(_: Config) -> dict[str, Any]:
        raise Stopped(signal.SIGTERM, "stopped after step 7, which is saved")

    assert run(stopped) == 143
    assert capfd.readouterr().err == "room.entry: stopped after step 7, which is saved\n"


def test_a_write_to_a_full_device(capfd: pytest.CaptureFixture[str]) -> None:
    def write(config: Config) -> dict[str, Any]:
        with Path("/dev/full").open("w") as file:
            file.write("x" * 100_000)
        return {}

    assert run(write) == 2
    assert capfd.readouterr().err == "room.entry: the operating system: No space left on device\n"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_what_was_there(tiny_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from common.files import write_folder_aside, write_text_atomically

    (tiny_disk / "store").mkdir()
    (tiny_disk / "store" / "old").touch()

    def write_folder(config: Config) -> dict[str, Any]:
        with write_folder_aside(tiny_disk / "store") as folder:
            (folder / "fits").write_bytes(bytes(30_000))
            (folder / "does not").write_bytes(bytes(60_000))
        return {}

    def write_file(config: Config) -> dict[str, Any]:
        write_text_atomically(tiny_disk / "file", "x" * 100_000)
        return {}

    for work in (write_folder, write_file):
        assert run(work) == 2
        err = capfd.readouterr().err
        assert "No space left on device" in err
        assert err.count("\n") == 1
        assert sorted(path.name for path in tiny_disk.rglob("*")) == ["old", "store"]


SCRIPT = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from common.config import option, run_entry
from common.errors import InputError, Stopped
from common.files import write_folder_aside

@dataclass
class Config:
    "Nothing to configure but this."
    do: str = option("fail", "what to do")

def work(config):
    if config.do == "wait":
        with write_folder_aside(Path(sys.argv[0]).parent / "store") as folder:
            (folder / "part").touch()
            print("waiting", flush=True)
            time.sleep(60)
    if config.do == "one":
        import os
        if os.environ["RANK"] == "0":
            time.sleep(60)
    raise InputError("store/x: column `item` is missing; prepare it again")

if __name__ == "__main__":
    sys.exit(run_entry("room.entry", "train", Config, work, None))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "entry.py"
    path.write_text(SCRIPT)
    return path


def start(*command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_control_c(script: Path) -> None:
    process = start(sys.executable, str(script), "do=wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "\nroom.entry: interrupted\n")
    assert process.returncode == 130
    assert [path.name for path in script.parent.iterdir()] == ["entry.py"]


# ── ranks ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("argv", [["x=-1"], ["--json"], ["--help"], ["--print-config"]])
def test_only_rank_0_prints(
    argv: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def status() -> int | str | None:
        try:
            return run(lambda config: {"x": config.x}, *argv)
        except SystemExit as left:
            return left.code

    monkeypatch.setenv("RANK", "0")
    alone = status()
    assert "".join(capfd.readouterr())
    monkeypatch.setenv("RANK", "1")
    assert status() == alone
    assert capfd.readouterr() == ("", "")


def test_the_first_rank_to_find_a_fault_prints_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, faults, printed in [
        ("1", ("common",), "e: common\n"),
        ("0", ("common",), ""),
        ("2", ("of this rank alone",), "e: of this rank alone\n"),
    ]:
        folder = tmp_path / "attempt_0" / rank
        folder.mkdir(parents=True)
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
        report_faults("e", faults)
        assert capfd.readouterr().err == printed
        assert json.loads((folder / "error.json").read_text())["message"]["message"] == f"e: {faults[0]}"


def test_a_reply_that_cannot_be_written_hides_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/proc/no/error.json")
    report_faults("e", ("a fault",))
    assert capfd.readouterr().err == "e: a fault\n"


@pytest.mark.parametrize("do", ["fail", "one"])
def test_under_torchrun_a_fault_is_printed_once_and_is_the_cause(do: str, script: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start(*torchrun, str(script), f"do={do}")
    out, err = process.communicate(timeout=60)
    fault = "room.entry: store/x: column `item` is missing; prepare it again"
    assert out == ""
    assert err.splitlines().count(fault) == 1
    cause = err.partition("Root Cause (first observed failure):")[2]
    assert f"traceback : {fault}\n" in cause  # torchrun's word for it
    assert "exitcode  : 2 " in cause
    assert process.returncode == 1  # torchrun's own, whatever a rank's
