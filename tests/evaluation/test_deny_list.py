from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import InputError
from evaluation.deny_list import read_deny_list
from tests.evaluation.helpers import make_store


def test_ids_of_the_log_become_indices(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [[0, 1, 2, 3], [4, 5, 6]], 7)
    given = tmp_path / "deny.txt"
    given.write_text("item 5\n\n  item 0 \nitem 5\n", encoding="utf-8")
    assert read_deny_list(given, store).tolist() == [0, 5]
    given.write_text("\n", encoding="utf-8")
    assert read_deny_list(given, store).tolist() == []


def test_unknown_items_are_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [[0, 1, 2, 3], [4, 5, 6]], 7)
    given = tmp_path / "deny.txt"
    given.write_text("item 5\nitem 77\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"1 of its 2 items are not in the store .*: item 77; give ids"):
        read_deny_list(given, store)
    with pytest.raises(InputError, match="cannot be read as a list of items"):
        read_deny_list(tmp_path / "absent.txt", store)
    given.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as a list of items"):
        read_deny_list(given, store)
