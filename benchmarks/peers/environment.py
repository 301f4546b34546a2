"""A peer's virtual environment: made once from pinned packages, outside the checkout.

A peer's packages clash with ours (RecTools wants an older NumPy), so each has an environment of its own, in a folder
named by what was installed: another set of pins is another environment, and one that is whole is used again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import ROOT
from common.errors import InputError

FOLDER = "SEGUE_PEERS"
"""The environment variable that names another folder for the environments."""
WHOLE = "whole"
"""A file that stands in an environment once all of it has been installed."""

POOLED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}
"""glibc keeps what is freed: without, every large tensor is mapped anew, and zeroed by the kernel page by page."""


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, made first where it is missing.

    Args:
        name: of `requirements/peers-NAME.txt`.

    Raises:
        InputError: it could not be made; nothing of it is left.
    """
    requirements = ROOT / "requirements" / f"peers-{name}.txt"
    folder = folder_of(name, requirements.read_bytes())
    python = folder / "bin" / "python"
    if not (folder / WHOLE).exists():
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted making left
        print(f"making {folder} from {requirements.name}: a minute or a few, once", file=sys.stderr, flush=True)
        try:
            _call([sys.executable, "-m", "venv", str(folder)], name)
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            _call([*pip, "--requirement", str(requirements)], name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / WHOLE).touch()
    return python


def folder_of(name: str, requirements: bytes) -> Path:
    """Where an environment with these requirements lies, under this version of Python."""
    root = Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "segue" / "peers").absolute()
    told = f"{sys.version_info[0]}.{sys.version_info[1]}\n".encode() + requirements
    return root / f"{name}-{hashlib.sha256(told).hexdigest()[:12]}"


def child_environment(threads: int, *, pooled: bool, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a peer's process gets to see: so many threads, and the allocator's settings or none at all."""
    ours = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTHON", "OMP_", "MKL_", "KMP_")
    kept = {key: value for key, value in inherited.items() if not key.startswith(ours)}
    threaded = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return kept | threaded | (POOLED if pooled else {})


def _call(command: list[str], name: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or done.stdout.splitlines()
        why = said[-1].removeprefix("ERROR: ") if said else f"status {done.returncode}"
        raise InputError(
            f"the environment of the peer {name} could not be made, as it is from packages that pip downloads: {why}"
        )
