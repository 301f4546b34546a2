"""How kernels are built, kept, and done without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.native import CACHE, SWITCH
from model.kernels.build import library, without_kernels

ASK = "from model.kernels.build import library; import torch; print(library() is not None)"


def ask(**environment: str) -> tuple[bool, str]:
    done = subprocess.run(
        [sys.executable, "-c", ASK], check=True, capture_output=True, text=True, env=os.environ | environment
    )
    return done.stdout.strip() == "True", done.stderr


def test_without_a_compiler_it_is_said_once_and_operators_do_all() -> None:
    found, told = ask(CXX="no-such-compiler", **{SWITCH: "on"})
    assert not found
    assert told.count("no-such-compiler") == 1
    assert "Install g++" in told


def test_switched_off_nothing_is_said() -> None:
    assert ask(**{SWITCH: "off"}) == (False, "")


@pytest.mark.skipif(library() is None, reason="needs a compiler")
def test_built_once_into_a_folder_of_ones_own(tmp_path: Path) -> None:
    assert ask(**{CACHE: str(tmp_path)})[0]
    folder = tmp_path / "segue" / "kernels"
    (made,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    before = made.stat().st_mtime_ns
    assert ask(**{CACHE: str(tmp_path)})[0]
    assert made.stat().st_mtime_ns == before
    made.write_bytes(b"damaged")
    found, told = ask(**{CACHE: str(tmp_path)})
    assert not found
    assert str(made) in told


@pytest.mark.skipif(library() is None, reason="needs a compiler")
def test_a_folder_that_others_may_write_is_not_loaded_from(tmp_path: Path) -> None:
    folder = tmp_path / "segue" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    found, told = ask(**{CACHE: str(tmp_path)})
    assert not found
    assert "others may write it" in told


def test_without_kernels_nests() -> None:
    with without_kernels():
        with without_kernels():
            pass
        assert library() is None
