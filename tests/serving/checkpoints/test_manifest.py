"""A manifest is taken whole and unchanged, from the folder it was written in, or not at all."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import xxhash

from common.errors import InputError
from common.storage import LocalStorage, open_storage
from serving.checkpoints.manifest import (
    BASE,
    FORMAT_VERSION,
    MANIFEST,
    Damage,
    Manifest,
    Shard,
    blank_manifest,
    encode_manifest,
    read_manifest,
    step_folder,
)

STEP = step_folder(12)
SHARDS = [
    Shard("a.0.0", "a", "tables-0", "states-0", 0, 5, 0, 4, 5),
    Shard("a.0.4", "a", "tables-1", "states-1", 0, 5, 4, 4, 5),
    Shard("b.9.0", "b", "tables-1", "", 9, 3, 0, 4, 2),
]


def manifest(**changes: Any) -> Manifest:
    names = ("store", "codes", "store_fingerprint", "codes_fingerprint", "config_fingerprint")
    made = blank_manifest(world_size=2, model={"é": [1, None]}, vocabulary={}, meanings={}, **dict.fromkeys(names, "x"))
    files = {name: {"bytes": 3, "xxh3_128": "0" * 32} for name in ("tables-0", "tables-1", "states-0", "states-1", "d")}
    usual = {"kind": BASE, "step": 12, "state": "12-t", "tables": {"a": [5, 8], "b": [12, 4]}, "shards": SHARDS}
    usual |= {"files": files, "dense": "d", "random": ["tables-0", "tables-1"], "metrics": {"ndcg@10": 0.25}}
    return dataclasses.replace(made, **{**usual, **changes})


def write(folder: Path, content: bytes | Manifest, name: str = STEP) -> LocalStorage:
    storage = open_storage(folder)
    storage.replace(f"{name}/{MANIFEST}", encode_manifest(content) if isinstance(content, Manifest) else content)
    return storage  # type: ignore[return-value]


def signed(content: dict[str, Any]) -> bytes:
    """With a checksum that fits, as if another release, or a hand that knows how, had written it."""
    content = {key: value for key, value in content.items() if key != "xxh3_128"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"xxh3_128": xxhash.xxh3_128(text.encode()).hexdigest()}).encode()


def plain(**changes: Any) -> dict[str, Any]:
    return {**json.loads(encode_manifest(manifest())), **changes}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    storage = write(tmp_path, manifest())
    assert read_manifest(storage, STEP) == manifest()
    assert read_manifest(storage, STEP).size == 15
    assert read_manifest(storage, STEP).touched == {"a": 5, "b": 2}, "a row in two pieces counts once"


def test_the_checksum_is_over_the_content_not_over_its_spaces(tmp_path: Path) -> None:
    content = json.loads(encode_manifest(manifest()))
    assert signed(content) != encode_manifest(manifest())
    assert read_manifest(write(tmp_path, signed(content)), STEP) == manifest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes that are not JSON"),
        (b"\xff\xfe\x00", "3 bytes that are not JSON"),
        (encode_manifest(manifest())[:-3], "that are not JSON"),
        (b"[" * 100_000, "100000 bytes that are not JSON"),
        (b"[1]", "not the manifest of a checkpoint"),
        (b"{}", "not the manifest of a checkpoint"),
        (signed(plain(format="another")), "not the manifest of a checkpoint"),
        (json.dumps(plain(step=13)).encode(), "its checksum is .*, it says .*: changed since it was written"),
        (json.dumps(plain(xxh3_128="")).encode(), "changed since it was written"),
        (signed(plain(surprise=1)), "not the keys of a manifest: .*surprise"),
        (signed({key: value for key, value in plain().items() if key != "dense"}), "not the keys .*dense"),
        (signed({key: value for key, value in plain().items() if key != "shards"}), "not the keys .*shards"),
        (signed(plain(shards=[{"key": "a"}])), "not the keys of a manifest"),
        (signed(plain(step=13)), "the manifest of step 13, in the folder of another step"),
        *[
            (signed(plain(files=plain()["files"] | {name: {}})), "names a file outside its folder")
            for name in ("../a", "/etc/a", "a/b", "./a", "a/", "..", ".", "")
        ],
        (signed(plain(dense="../secret")), "uses '../secret', which its list of files lacks"),
        (signed(plain(random=["tables-0", "/etc/a"])), "uses '/etc/a', which"),
        (signed(plain(shards=[plain()["shards"][0] | {"tables": "../../a"}])), "uses '../../a', which"),
        (signed(plain(shards=[plain()["shards"][0] | {"states": "gone"}])), "uses 'gone', which"),
    ],
)
def test_what_is_no_manifest_is_damage_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    storage = write(tmp_path, content)
    with pytest.raises(Damage, match=message) as caught:
        read_manifest(storage, STEP)
    assert str(caught.value).startswith(f"{tmp_path}/{STEP}/{MANIFEST}: ")


def test_a_missing_manifest_and_one_that_cannot_be_read_are_damage(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with pytest.raises(Damage, match=f"{STEP}/{MANIFEST}: no such file"):
        read_manifest(storage, STEP)
    (tmp_path / STEP / MANIFEST).mkdir(parents=True)
    with pytest.raises(Damage, match=f"{STEP}/{MANIFEST}: cannot be read: .*irectory"):
        read_manifest(storage, STEP)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, FORMAT_VERSION - 1, None, "3"])
def test_another_version_of_the_format_is_not_damage_but_said(tmp_path: Path, version: Any) -> None:
    for content in (
        signed(plain(format_version=version, of_the_future=1)),
        json.dumps({"format": "segue-checkpoint", "format_version": version}).encode(),  # without a checksum of itself
    ):
        with pytest.raises(InputError, match=f"format version {version}, this release reads version {FORMAT_VERSION}"):
            read_manifest(write(tmp_path, content), STEP)


def test_every_flipped_bit_is_damage(tmp_path: Path) -> None:
    """Every bit of the line that says the version, where another number would be no damage, and many elsewhere."""
    whole = encode_manifest(manifest())
    storage, path = write(tmp_path, whole), tmp_path / STEP / MANIFEST
    at = whole.index(b'"format_version"')
    bits = [8 * byte + bit for byte in range(at, at + 21) for bit in range(8)]
    bits += random.Random(0).sample(range(8 * len(whole) - 16), 600)
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        if flipped.isascii() and json_equal(bytes(flipped), whole):
            continue  # white space became another: nothing has been lost
        path.write_bytes(flipped)
        with pytest.raises(Damage):
            read_manifest(storage, STEP)


def json_equal(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def test_names_sort_as_steps_do() -> None:
    steps = [0, 9, 10, 99_999_999]
    assert sorted(map(step_folder, reversed(steps))) == [step_folder(step) for step in steps]
