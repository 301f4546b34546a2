"""The entry point, from a store on disk to an opened code table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.errors import InputError
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.codes.item_ids import item_codes, random_codebook
from semantic_ids.codes.trie import CodeTrie
from semantic_ids.fit import main
from semantic_ids.vectors.choose import VectorsConfig, item_vectors
from semantic_ids.vectors.collaborative import CollaborativeConfig

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
    vectors = item_vectors(taste_store, "auto", VectorsConfig(collaborative=config))
    vectors_nd = vectors.block(0, len(vectors))
    decoded = table.decode(table.codes_NC[vectors.items_n])
    error = np.square(vectors_nd - decoded).sum() / np.square(vectors_nd).sum()
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
        (["quantizer=faiss", "codes=12"], "must be a power of two; the nearest are 8 and 16"),
        (["codes=64"], "`codes` is 64, but only 43 items have a vector"),
        (["quantizer=rq-vae", "codes=64"], "`codes` is 64, but only 43 items have a vector"),
        (["codes=70000"], "must be from 2 to 65536"),
        (["collisions=random-level", "levels=1"], "`levels` must be at least 2"),
        (["quantizer=item", "refit_of=codes/x"], "has no labels to keep"),
        (["refit_of=nowhere"], "nowhere"),
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


@pytest.mark.parametrize("quantizer", ["residual-kmeans", "rq-vae", "faiss"])
def test_every_quantiser_gives_a_table_that_codes_anew_what_it_coded(taste_store, tmp_path, quantizer):
    more = ["rq_vae.steps=30", "rq_vae.warm_up=5", "rq_vae.latent=8"] if quantizer == "rq-vae" else []
    assert fit(taste_store, tmp_path / "codes", f"quantizer={quantizer}", *more) == 0
    table = CodeTable.open(tmp_path / "codes", taste_store)
    assert table.manifest.quantizer == table.manifest.settings["quantizer"] == quantizer
    vectors = item_vectors(taste_store, "auto", VectorsConfig(collaborative=CollaborativeConfig(rank=6)))
    again = table.quantizer.encode(vectors.block(0, len(vectors)))
    np.testing.assert_array_equal(again, table.codes_NC[vectors.items_n])
    assert again.any(axis=1).all()


@pytest.mark.parametrize(
    ("how", "codes", "levels", "shared"),
    [("none", 7, 2, True), ("extra-level", 16, 3, False), ("random-level", 16, 2, False), ("reassign", 7, 2, False)],
)
def test_collisions_are_resolved_as_asked(taste_store, tmp_path, capsys, how, codes, levels, shared):
    assert fit(taste_store, tmp_path / "codes", f"codes={codes}", f"collisions={how}", "--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    table = CodeTable.open(tmp_path / "codes", taste_store)
    known = table.codes_NC[table.known_N]
    assert known.shape == (43, levels)
    distinct = len(np.unique(known, axis=0))
    assert (distinct < 43) == shared
    assert (summary["unique_tuples"], summary["collision_rate"] > 0) == (distinct, shared)
    # Whatever the tuples, every known item can be retrieved.
    assert sorted(CodeTrie.of(table).leaf_items.tolist()) == list(range(43))


def test_blended_vectors_code_what_either_kind_knows(make_store, taste_histories, taste_artists, tmp_path):
    generator = np.random.default_rng(1)
    content = {item: generator.standard_normal(4) for item in [*range(0, 40, 2), 45]}
    store = make_store(taste_histories, taste_artists, content)
    for more, known in (
        (["embeddings=content"], set(content)),
        (["embeddings=blended"], set(content) | set(range(41))),
        (["embeddings=blended", "blend.collaborative_for_missing=false"], set(content)),
    ):
        assert fit(store, tmp_path / "codes", *more) == 0
        assert set(np.flatnonzero(CodeTable.open(tmp_path / "codes", store).known_N).tolist()) == known


def test_a_vector_of_zeros_is_unknown_and_equal_vectors_share_a_tuple(make_store, tmp_path, capsys):
    generator = np.random.default_rng(1)
    content = {item: generator.standard_normal(4) for item in range(30)}
    content[7], content[8] = np.zeros(4), content[9]
    store = make_store([[0, 1, 2, 3]], [[]] * 30, content)
    assert fit(store, tmp_path / "codes") == 0
    table = CodeTable.open(tmp_path / "codes", store)
    assert np.flatnonzero(~table.known_N).tolist() == [7]
    np.testing.assert_array_equal(table.codes_NC[8], table.codes_NC[9])
    assert "zero" in capsys.readouterr().out


def test_an_embedding_that_is_not_finite_is_named(make_store, tmp_path, capsys):
    content = {item: np.full(4, item, float) for item in range(30)}
    content[11][2] = np.nan
    store = make_store([[0, 1, 2, 3]], [[]] * 30, content)
    assert fit(store, tmp_path / "codes") == 2
    assert "item 11" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_refit_keeps_labels(make_store, taste_histories, taste_artists, tmp_path, capsys):
    before = make_store(taste_histories, taste_artists)
    after = make_store([*taste_histories, [1, 3, 41, 44, 1, 2]], taste_artists)
    assert fit(before, tmp_path / "older") == 0
    assert fit(after, tmp_path / "fresh", "seed=9") == 0
    capsys.readouterr()
    assert fit(after, tmp_path / "kept", "seed=9", f"refit_of={tmp_path / 'older'}") == 0
    older, fresh, kept = (
        CodeTable.open(tmp_path / name, store).codes_NC[:41]
        for name, store in (("older", before), ("fresh", after), ("kept", after))
    )
    same = [(codes == older).all(axis=1).mean() for codes in (fresh, kept)]
    assert same[1] > max(0.4, 3 * same[0]), same
    assert "another tuple" in capsys.readouterr().out
    manifest = CodeTable.open(tmp_path / "kept", after).manifest
    figures = manifest.diagnostics["refit_figures"]
    assert figures["items"] == 48
    assert fit(after, tmp_path / "x", "quantizer=faiss", f"refit_of={tmp_path / 'older'}") == 2
    assert fit(after, tmp_path / "x", "codes=4", f"refit_of={tmp_path / 'older'}") == 2
    assert "set `levels` and `codes`" in capsys.readouterr().err


@pytest.mark.parametrize("quantizer", ["residual-kmeans", "faiss"])  # the one starts from the older codes, FAISS anew
def test_a_refit_of_content_with_new_items_keeps_most_tuples(make_store, tmp_path, quantizer):
    generator = np.random.default_rng(1)
    centres = 3 * generator.standard_normal((8, 6))
    content = {item: centres[item % 8] + 0.3 * generator.standard_normal(6) for item in range(330)}
    stores = [make_store([[0, 1, 2, 3]], [[]] * n, {i: content[i] for i in range(n)}) for n in (300, 330)]
    quantizer = f"quantizer={quantizer}"
    assert fit(stores[0], tmp_path / "older", quantizer) == 0
    for name, more in (("kept", [f"refit_of={tmp_path / 'older'}"]), ("fresh", [])):
        assert fit(stores[1], tmp_path / name, "seed=2", quantizer, *more) == 0
    older = CodeTable.open(tmp_path / "older", stores[0]).codes_NC
    kept, fresh = (CodeTable.open(tmp_path / name, stores[1]).codes_NC[:300] for name in ("kept", "fresh"))
    if "faiss" in quantizer:  # other groups of items, so matching alone can keep only so many
        assert (kept[:, 0] == older[:, 0]).mean() > max(0.5, 2 * (fresh[:, 0] == older[:, 0]).mean())
    else:
        assert (kept[:, 0] == older[:, 0]).all()
        assert (kept == older).all(axis=1).mean() > 0.8
    assert (fresh == older).all(axis=1).mean() < 0.3


def test_plain_item_ids(taste_store, tmp_path, capsys):
    assert main([f"store={taste_store.path}", f"out={tmp_path / 'codes'}", "quantizer=item"]) == 0
    table = CodeTable.open(tmp_path / "codes", taste_store)
    assert table.codes_NC[:, 0].tolist() == list(range(1, 49)), "items that training has not seen have ids as well"
    assert table.known_N.all()
    assert (table.num_levels, table.codes_per_level) == (1, 49)
    assert "48 distinct tuples" in capsys.readouterr().out
    decoded = table.decode(table.codes_NC)
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, rtol=1e-5)
    assert len(CodeTrie.of(table).leaf_items) == 48


def test_plain_item_ids_of_too_many_items():
    with pytest.raises(InputError, match="65,536 items, and a level has at most 65,535 codes"):
        item_codes(65536)
    assert random_codebook(65535, 0).shape[1] == 65536
