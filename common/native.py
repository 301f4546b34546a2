"""C++ of our own, compiled where it runs: `compiled(package)`.

The sources that lie in a package are built once for a processor and a compiler, in some seconds, and kept in the
user's cache (`SEGUE_CACHE`, else `XDG_CACHE_HOME`, else `~/.cache`). Without a compiler, or with `SEGUE_KERNELS=off`,
there is no library, and whoever asks has another way. What is built is loaded from a folder that belongs to this user
and that nobody else may write.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SWITCH = "SEGUE_KERNELS"
CACHE = "SEGUE_CACHE"
TIMEOUT_S = 300
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp")

_LOG = logging.getLogger(__name__)


@functools.cache
def compiled(package: str) -> ctypes.CDLL | None:
    """A package's `.cpp` and `.h` as a library, built if need be; None where it cannot be built, which is said once."""
    if os.environ.get(SWITCH, "on") == "off" or os.name != "posix":
        return None
    try:
        return ctypes.CDLL(str(_built(_folder(package))), mode=os.RTLD_NOW)
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        _LOG.warning(
            "attention and losses run on PyTorch's operators, some two times slower: kernels of our own could not be "
            "built (%s). Install g++, or set %s=off to do without them.",
            " ".join(str(told).split())[-300:],
            SWITCH,
        )
        return None


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    assert spec.origin is not None, package
    return Path(spec.origin).parent


def _built(folder: Path) -> Path:
    """The shared object."""
    compiler = _compiler()
    sources = sorted(path for path in folder.iterdir() if path.suffix in (".cpp", ".h"))
    told = [compiler, *FLAGS, _version(compiler), _processor(), *(path.read_text() for path in sources)]
    name = hashlib.sha256("\0".join(told).encode()).hexdigest()[:20]
    cache = _private_folder()
    made = cache / f"{name}.so"
    if made.exists():
        return made
    with tempfile.TemporaryDirectory(dir=cache) as aside:
        objects = []
        for path in sources:
            if path.suffix == ".cpp":
                objects.append(str(Path(aside) / f"{path.stem}.o"))
                _run([compiler, *FLAGS, "-c", str(path), "-o", objects[-1]])
        # Linked without OpenMP's library: its calls find the one that torch has loaded, so that both share its threads.
        target = Path(aside) / made.name
        _run([compiler, "-shared", *objects, "-o", str(target)])
        target.replace(made)  # whoever builds the same at the same time replaces it by the same
    return made


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)


def _compiler() -> str:
    wanted = os.environ.get("CXX") or "g++"
    found = shutil.which(wanted)
    if found is None:
        raise FileNotFoundError(f"no compiler `{wanted}`")
    return found


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=30).stdout


def _processor() -> str:
    """What `-march=native` depends on: a cache may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    kept = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return "\n".join(sorted(kept))


def _private_folder() -> Path:
    cache = os.environ.get(CACHE) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(cache).expanduser() / "segue" / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to somebody else, or others may write it")
    return folder
