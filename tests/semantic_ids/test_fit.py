"""The entry point, from a store on disk to an opened code table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.errors import InputError
from semantic_ids.codebook import CodeTable
from semantic_ids.embeddings import CollaborativeConfig, item_vectors, training_events
from semantic_ids.fit import main
from semantic_ids.item_ids import item_codes, random_codebook
from semantic_ids.trie import CodeTrie

SMALL = ["levels=2", "codes=8", "collaborative.rank=6"]


def fit(store, out, *more: str) -> int:
    return main([f"store={store.path}", f"out={out}", *SMALL, *more])


def test_fit_writes_a_table_that_codes_its_vectors(taste_store, tmp_path, capsys):
    assert fit(taste_store, tmp_path / "codes", "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads(lines[-1])
    table = CodeTable.open(tmp_path / "codes", taste_store)
    assert summary["fingerprint"] == table.fingerprint
    assert (summary["items"], summary["known"], summary["unknown"]) == (48, 43, 5)
    assert table.known_N.tolist() == [item < 43 for item in range(48)]
    assert any(line.startswith("level") for line in lines)

    # The table decodes to the vectors within the error that it states.
    config = CollaborativeConfig(rank=6)
    vectors = item_vectors(taste_store, "auto", training_events(taste_store), config)
    decoded = table.decode(table.codes_NC[vectors.items_n])
    error = np.square(vectors.vectors_nd - decoded).sum() / np.square(vectors.vectors_nd).sum()
    assert error == pytest.approx(table.manifest.diagnostics["levels"][-1]["relative_error"], rel=1e-5)
    assert error < 0.2
    assert summary["unique_tuples"] == len({tuple(row) for row in table.codes_NC[:43].tolist()})

    trie = CodeTrie.of(table)
    assert trie.unknown_items.tolist() == [43, 44, 45, 46, 47]
    np.testing.assert_array_equal(trie.leaf_items, table.item_order)
    np.testing.assert_array_equal(trie.leaf_offsets, table.group_offsets)


def test_two_fits_are_one_table(taste_store, tmp_path):
    for name, more in (("a", []), ("b", []), ("c", ["seed=2"])):
        assert fit(taste_store, tmp_path / name, *more) == 0
    a, b, c = (CodeTable.open(tmp_path / name, taste_store) for name in "abc")
    assert a.fingerprint == b.fingerprint
    assert a.fingerprint != c.fingerprint
    np.testing.assert_array_equal(a.codebooks_CVd, b.codebooks_CVd)


def test_held_out_events_move_no_code(make_store, taste_histories, taste_artists, taste_store, tmp_path):
    planted = make_store([[*items[:-2], 45, 7] for items in taste_histories], taste_artists)
    assert fit(taste_store, tmp_path / "a") == fit(planted, tmp_path / "b") == 0
    a, b = CodeTable.open(tmp_path / "a", taste_store), CodeTable.open(tmp_path / "b", planted)
    np.testing.assert_array_equal(a.codes_NC, b.codes_NC)
    np.testing.assert_array_equal(a.codebooks_CVd, b.codebooks_CVd)
    np.testing.assert_array_equal(a.training_plays_N, b.training_plays_N)


def test_content_embeddings_are_coded(make_store, tmp_path):
    generator = np.random.default_rng(1)
    content = {item: generator.standard_normal(4) for item in range(0, 40, 2)}
    store = make_store([[0, 1, 2, 3]], [[]] * 40, content)
    assert fit(store, tmp_path / "codes") == 0
    table = CodeTable.open(tmp_path / "codes", store)
    assert table.manifest.embeddings == "content"
    assert "collaborative" not in table.manifest.settings
    np.testing.assert_array_equal(np.flatnonzero(table.known_N), np.arange(0, 40, 2))


def test_yaml_section(taste_store, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"prepare: {{out: {taste_store.path}}}\n"
        f"fit_ids: {{store: '${{prepare.out}}', out: {tmp_path / 'codes'}, levels: 1, codes: 4,"
        " collaborative: {window: 3}}\n"
    )
    assert main(["--config", str(config), "levels=2"]) == 0
    table = CodeTable.open(tmp_path / "codes", taste_store)
    assert table.codes_NC.shape == (48, 2)
    assert table.manifest.settings["collaborative"]["window"] == 3


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (["codes=1000"], "must be a power of two; the nearest are 512 and 1024"),
        (["codes=64"], "`codes` is 64, but only 43 items have a vector"),
        (["levels=1", "codes=2"], "all 2 tuples of 1 levels × 2 codes are carried by items"),
        (["embeddings=content"], "holds no content embeddings"),
        (["embeddings=contents"], "did you mean"),
        (["collaborative.shift=0"], "`collaborative.shift` is 0"),
        (["collaborative.windows=3"], "did you mean `collaborative.window`"),
        (["store=nowhere"], "nowhere"),
    ],
)
def test_faults_end_with_status_2_and_leave_nothing(taste_store, tmp_path, capsys, settings, fault):
    assert fit(taste_store, tmp_path / "codes", *settings) == 2
    assert fault in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_failed_fit_keeps_the_table_that_was_there(taste_store, tmp_path):
    assert fit(taste_store, tmp_path / "codes") == 0
    before = CodeTable.open(tmp_path / "codes", taste_store).fingerprint
    assert fit(taste_store, tmp_path / "codes", "codes=64") == 2
    assert CodeTable.open(tmp_path / "codes", taste_store).fingerprint == before
    assert fit(taste_store, tmp_path / "codes", "codes=4") == 0
    assert CodeTable.open(tmp_path / "codes", taste_store).codes_per_level == 4


def test_out_that_is_something_else_is_not_replaced(taste_store, capsys):
    assert main([f"store={taste_store.path}", f"out={taste_store.path}", *SMALL]) == 2
    assert "exists and is not a code table" in capsys.readouterr().err
    assert (taste_store.path / "items.parquet").exists()


def test_plain_item_ids(taste_store, tmp_path, capsys):
    assert main([f"store={taste_store.path}", f"out={tmp_path / 'codes'}", "quantizer=item"]) == 0
    table = CodeTable.open(tmp_path / "codes", taste_store)
    assert table.codes_NC[:, 0].tolist() == list(range(1, 49)), "items that training has not seen have ids as well"
    assert table.known_N.all()
    assert (table.num_levels, table.codes_per_level) == (1, 64)
    assert "48 distinct tuples" in capsys.readouterr().out
    decoded = table.decode(table.codes_NC)
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, rtol=1e-5)
    assert len(CodeTrie.of(table).leaf_items) == 48


def test_plain_item_ids_of_too_many_items():
    with pytest.raises(InputError, match="65,536 items, and a level has at most 65,535 codes"):
        item_codes(65536)
    assert random_codebook(65535, 0).shape[1] == 65536
