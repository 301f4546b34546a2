"""What every benchmark does: parse, say where it ran, print one JSON object last, keep a page of a full run.

    python -m benchmarks.NAME [--quick]

`--quick` ends within a minute on two cores and writes nothing; a full run also writes `benchmarks/results/NAME.json`
and `.md`. Figures carry the names that the project's targets use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

PACKAGES = ("torch", "pyarrow", "numpy", "fbgemm_gpu-cpu", "torchrec", "faiss-cpu")


@dataclass
class Findings:
    """What a benchmark found.

    Attributes:
        figures: by name, the last line of the output.
        sections: title and Markdown, in order, for the page.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    sections: list[tuple[str, str]] = field(default_factory=list)

    def add(self, title: str, text: str, **figures: Any) -> None:
        """Keep a section and its figures, and print it."""
        self.sections.append((title, text))
        self.figures |= figures
        print(f"── {title}\n{text}\n", flush=True)


def run(name: str, work: Callable[[bool, Path, Findings], None], argv: Sequence[str] | None = None) -> int:
    """The whole of a benchmark's `main`.

    Args:
        work: called with whether to be quick, a scratch folder that is removed afterwards, and where to put findings.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=sys.modules[work.__module__].__doc__
    )
    parser.add_argument("--quick", action="store_true", help="a smaller run of under a minute; no page is written")
    parser.add_argument("--scratch", type=Path, help="where to put what is generated; a temporary folder if not given")
    given = parser.parse_args(argv)
    findings = Findings()
    start = time.perf_counter()
    with _scratch(given.scratch) as folder:
        work(given.quick, folder, findings)
    figures = {key: _rounded(value) for key, value in findings.figures.items()}
    about = machine() | {"commit": commit(), "seconds": round(time.perf_counter() - start)}
    if not given.quick:
        write_page(name, about, figures, findings.sections)
    print(json.dumps(figures))
    return 0


@contextmanager
def _scratch(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="segue-benchmark-", dir=given))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """The machine and the versions, as far as they bear on speed."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def commit() -> str:
    """The checkout's commit, marked where files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "not a git checkout"


@dataclass(frozen=True)
class Measured:
    """A command that has run: wall seconds, largest resident set in GB, and the JSON object it printed last."""

    seconds: float
    peak_gb: float
    summary: dict[str, Any]


def measure(command: Sequence[str]) -> Measured:
    """Run a command of the project with `--json` and see what it took; its progress goes to standard error.

    Raises:
        RuntimeError: it failed.
    """
    print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
    launcher = [sys.executable, "-c", _LAUNCHER, sys.executable, *command, "--json"]
    done = subprocess.run(launcher, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    *printed, last = done.stdout.splitlines()
    told = json.loads(last)
    if told["status"]:
        raise RuntimeError(f"{shlex.join(command)} ended with status {told['status']}\n" + "\n".join(printed))
    return Measured(told["seconds"], told["peak_kb"] * 1024 / 1e9, json.loads(printed[-1]))


# A process's largest resident set is told with that of whoever started it in it, so a small process does. It starts by
# fork: what vfork or spawn share with the parent would count.
_LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
child = os.fork()
if child == 0:
    os.execv(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
told = {"status": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - start}
print(json.dumps(told | {"peak_kb": usage.ru_maxrss}), flush=True)
"""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, columns aligned for a terminal too."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def write_page(
    name: str,
    about: dict[str, Any],
    figures: dict[str, Any],
    sections: Sequence[tuple[str, str]],
    command: str = "",
) -> None:
    """Keep a full run: JSON for programs, Markdown for people. `command` if it is not `python -m benchmarks.NAME`."""
    RESULTS.mkdir(exist_ok=True)
    kept = {"machine": about, "figures": figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    versions = ", ".join(f"{key} {about[key]}" for key in ("python", *PACKAGES))
    lines = [
        f"# {name}",
        "",
        f"`{command or f'python -m benchmarks.{name}'}` at commit `{about['commit']}`, {about['seconds']} s, on "
        f"{about['cores']} cores of {about['processor']} with {about['memory_gib']} GiB; {versions}.",
        "",
        table(["figure", "value"], [[f"`{key}`", value] for key, value in figures.items()]),
    ]
    for title, text in sections:
        lines += ["", f"## {title}", "", text]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
