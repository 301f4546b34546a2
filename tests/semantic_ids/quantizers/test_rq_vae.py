"""RQ-VAE against its parts written out: moving averages, gradients, coding; and against FAISS's residual quantiser."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from semantic_ids.quantizers import rq_vae
from semantic_ids.quantizers.base import sum_of_rows
from semantic_ids.quantizers.rq_vae import RqVae, RqVaeConfig, _ExactLayers, _NearestRow
from semantic_ids.quantizers.rq_vae_training import (
    AutoEncoder,
    EmaCodebook,
    _batches,
    _Training,
    fit_rq_vae,
    learning_rate_factor,
    loss_of,
    quantise,
    straight_through,
)

LEVELS, CODES = 3, 24
WIDTH, LATENT = 16, 8
SMALL = RqVaeConfig(hidden=[32], latent=LATENT, batch=256, steps=150, warm_up=20)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small spend their time waking threads."""
    threads, faiss_threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(faiss_threads)


def clustered(count: int, seed: int) -> np.ndarray:
    """Vectors [count, 16] around 40 centres, whose spectrum decays; none of them at the origin."""
    centres = np.random.default_rng(0).standard_normal((40, WIDTH))
    generator = np.random.default_rng(seed)
    scattered = centres[generator.integers(40, size=count)] + 0.3 * generator.standard_normal((count, WIDTH))
    return (scattered / np.sqrt(np.arange(1, WIDTH + 1)) + 3).astype(np.float32)


@pytest.fixture(scope="module")
def vectors_nD() -> np.ndarray:
    return clustered(1200, seed=1)


@pytest.fixture(scope="module")
def fitted(vectors_nD: np.ndarray) -> RqVae:
    return fit_rq_vae(vectors_nD, levels=LEVELS, codes=CODES, config=SMALL, seed=1)


def relative_error(vectors_nD: np.ndarray, approximate_nD: np.ndarray) -> float:
    centred = vectors_nD - vectors_nD.mean(axis=0)
    return float(np.square(vectors_nD - approximate_nD).sum() / np.square(centred).sum())


# ── codebooks and gradients ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99])
def test_moving_averages_equal_plain_ones(decay):
    generator = np.random.default_rng(5)
    rows = generator.standard_normal((7, 4)).astype(np.float32)
    counts = generator.uniform(1, 5, 7).astype(np.float32)
    codebook = EmaCodebook(torch.from_numpy(rows), torch.from_numpy(counts), decay)
    count, total = counts.astype(np.float64), rows.astype(np.float64) * counts[:, None]
    for _ in range(6):
        residuals = generator.standard_normal((50, 4)).astype(np.float32)
        codes = generator.integers(6, size=50)  # code 6 finds no use
        codebook.update(torch.from_numpy(residuals), torch.from_numpy(codes))
        for code in range(7):
            mine = residuals[codes == code].astype(np.float64)
            count[code] = decay * count[code] + (1 - decay) * len(mine)
            total[code] = decay * total[code] + (1 - decay) * mine.sum(axis=0)
        smoothed = (count + 1e-5) / (count.sum() + 7e-5) * count.sum()
        np.testing.assert_allclose(codebook.counts_V.numpy(), count, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(codebook.rows_Vd.numpy(), total / smoothed[:, None], rtol=1e-4, atol=1e-5)
    assert codebook.rows_Vd.dtype == torch.float32


def test_dead_codes_move_onto_residuals_and_the_others_stay():
    generator = np.random.default_rng(2)
    rows, counts = torch.from_numpy(generator.standard_normal((6, 3)).astype(np.float32)), torch.ones(6)
    counts[[1, 4]] = 0.001
    residuals = torch.from_numpy(generator.standard_normal((20, 3)).astype(np.float32) + 10)
    codebook, again = EmaCodebook(rows, counts, 0.9), EmaCodebook(rows, counts, 0.9)
    codebook.restart_dead(residuals, seed=3)
    again.restart_dead(residuals, seed=3)
    assert torch.equal(codebook.rows_Vd, again.rows_Vd)
    alive = [0, 2, 3, 5]
    assert torch.equal(codebook.rows_Vd[alive], rows[alive])
    for code in (1, 4):
        assert (codebook.rows_Vd[code] == residuals).all(dim=1).any()
        torch.testing.assert_close(codebook.sums_Vd[code] / codebook.counts_V[code], codebook.rows_Vd[code])
    codebook.restart_dead(residuals, seed=4)
    assert torch.equal(codebook.rows_Vd[alive], rows[alive])
    assert codebook.counts_V.min() > 0.5  # hence none is dead any more


def small_codebooks(seed: int) -> list[EmaCodebook]:
    generator = torch.Generator().manual_seed(seed)
    return [EmaCodebook(torch.randn(5, 4, generator=generator) / 2**level, torch.ones(5), 0.9) for level in range(3)]


def test_quantise_is_greedy_and_its_commitment_is_that_of_every_level():
    latent = torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    codebooks = small_codebooks(2)
    found = quantise(latent, codebooks)
    residual, commitment, rows = latent.numpy().astype(np.float64), 0.0, np.zeros((30, 4))
    for level, codebook in enumerate(codebooks):
        np.testing.assert_allclose(found.residuals[level].numpy(), residual, atol=1e-6)
        book = codebook.rows_Vd.numpy().astype(np.float64)
        codes = np.square(residual[:, None] - book).sum(axis=2).argmin(axis=1)
        np.testing.assert_array_equal(found.codes[level].numpy(), codes)
        residual, rows = residual - book[codes], rows + book[codes]
        commitment += np.square(residual).mean()
    np.testing.assert_allclose(found.rows_Bd.numpy(), rows, atol=1e-6)
    assert float(found.commitment) == pytest.approx(commitment, rel=1e-5)


@pytest.mark.parametrize("commitment", [0.0, 0.25])
def test_gradient_goes_straight_through_the_choice_of_codes(commitment):
    """The encoder's gradient: that of the decoder's input, and of each level's residual, both taken by hand."""
    network, codebooks = AutoEncoder(6, [10], 4, seed=3), small_codebooks(4)
    standard = torch.randn(25, 6, generator=torch.Generator().manual_seed(5))
    loss, quantised = loss_of(network, codebooks, standard, commitment)
    loss.backward()
    assert quantised is not None
    found = [parameter.grad.clone() for parameter in network.encoder.parameters()]

    network.zero_grad()
    decoder_input = quantised.rows_Bd.clone().requires_grad_()
    (network.decoder(decoder_input) - standard).square().mean().backward()
    latent = network.encoder(standard)
    by_hand = decoder_input.grad.clone()
    residual = latent.detach()
    for level, codebook in enumerate(codebooks):
        residual = residual - codebook.rows_Vd[quantised.codes[level]]
        by_hand += commitment * 2 * residual / residual.numel()
    expected = torch.autograd.grad(latent, list(network.encoder.parameters()), by_hand)
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_straight_through_has_the_value_of_the_rows():
    latent, rows = torch.tensor([[0.5, -2.0]], requires_grad=True), torch.tensor([[1.0, 3.0]])
    through = straight_through(latent, rows)
    torch.testing.assert_close(through, rows)
    (gradient,) = torch.autograd.grad(through, latent, torch.tensor([[7.0, -1.0]]))
    assert torch.equal(gradient, torch.tensor([[7.0, -1.0]]))


# ── the start and the order of training ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("hidden", "latent", "axes"), [([32], 8, 8), ([40, 32], 8, 8), ([64], 20, 16), ([12], 8, 6)])
def test_training_starts_as_a_projection_onto_principal_axes(vectors_nD, hidden, latent, axes):
    config = RqVaeConfig(hidden=hidden, latent=latent)
    training = _Training(vectors_nD, levels=1, codes=1200, config=config, seed=1)  # as many codes: no sample is drawn
    standard = training._standard(np.arange(len(vectors_nD)))
    with torch.no_grad():
        decoded = training.network.decoder(training.network.encoder(standard)).numpy()
    left, _, right = np.linalg.svd(standard.numpy().astype(np.float64), full_matrices=False)
    assert left.shape == (1200, WIDTH)
    projected = standard.numpy() @ right[:axes].T @ right[:axes]
    np.testing.assert_allclose(decoded, projected, atol=2e-5)


def test_vectors_are_divided_by_one_number(vectors_nD):
    standard = _Training(vectors_nD, 1, 2, SMALL, 1)._standard(np.arange(1200)).numpy()
    centred = vectors_nD - vectors_nD.mean(axis=0)
    np.testing.assert_allclose(standard, centred / np.sqrt(np.square(centred).mean()), atol=1e-5)


def test_an_epoch_has_every_vector_once_in_an_order_of_its_own():
    epochs = np.array(list(_batches(20, RqVaeConfig(batch=5, steps=8, warm_up=0), seed=1))).reshape(2, 20)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(20), (2, 1)))
    assert (epochs[0] != epochs[1]).any()
    whole = list(_batches(3, RqVaeConfig(batch=5, steps=4, warm_up=0), seed=1))
    assert [sorted(batch) for batch in whole] == [[0, 1, 2]] * 4


def test_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    config = RqVaeConfig(steps=12, warm_up=3)
    factors = [learning_rate_factor(step, config) for step in range(12)]
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factors[3:] == pytest.approx([(1 + math.cos(math.pi * step / 9)) / 2 for step in range(9)])


@pytest.mark.parametrize("start", ["principal", "random"])
def test_the_loss_falls(vectors_nD, start):
    config = RqVaeConfig(hidden=[32], latent=LATENT, batch=256, steps=150, warm_up=20, start=start)
    training = _Training(vectors_nD, LEVELS, CODES, config, 1)
    training.run()
    assert len(training.losses) == 150
    assert np.mean(training.losses[-20:]) < 0.95 * np.mean(training.losses[20:40])


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────


def test_held_out_error_and_uniqueness_are_near_those_of_residual_k_means():
    vectors, held_out = clustered(2000, seed=1), clustered(1000, seed=2)
    judge = faiss.ResidualQuantizer(WIDTH, 3, 5)
    judge.train_type, judge.max_beam_size = faiss.ResidualQuantizer.Train_default, 1
    judge.cp.min_points_per_centroid = 1
    judge.train(vectors)
    packed = judge.compute_codes(held_out)
    config = RqVaeConfig(hidden=[64], latent=WIDTH, batch=512, steps=300, warm_up=30)
    quantizer = fit_rq_vae(vectors, levels=3, codes=32, config=config, seed=1)
    codes = quantizer.encode(held_out)
    ours, theirs = (
        relative_error(held_out, quantizer.reconstruct(codes)),
        relative_error(held_out, judge.decode(packed)),
    )
    assert ours < 1.5 * theirs
    unique, judged = len(np.unique(codes, axis=0)), len(np.unique(faiss.unpack_bitstrings(packed, 3, 5), axis=0))
    assert unique > 0.9 * judged
    errors = [relative_error(held_out, quantizer.reconstruct(codes[:, :level])) for level in (1, 2, 3)]
    assert 1 > errors[0] > errors[1] > errors[2] == ours


@pytest.mark.parametrize("restart_dead", [False, True])
def test_fit_is_a_function_of_its_arguments(vectors_nD, restart_dead):
    warm_up = 0 if restart_dead else 5
    config = RqVaeConfig(hidden=[32], latent=LATENT, batch=256, steps=40, warm_up=warm_up, restart_dead=restart_dead)
    drawn = torch.get_rng_state()
    first = fit_rq_vae(vectors_nD, levels=2, codes=200, config=config, seed=7).arrays()
    assert torch.equal(torch.get_rng_state(), drawn)  # nobody else's draws are touched
    torch.manual_seed(99)
    second = fit_rq_vae(vectors_nD, levels=2, codes=200, config=config, seed=7).arrays()
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name
    other = fit_rq_vae(vectors_nD, levels=2, codes=200, config=config, seed=8).arrays()
    assert not np.array_equal(first["codebooks"], other["codebooks"])


def test_restart_uses_more_codes(vectors_nD):
    used = []
    for restart_dead in (False, True):
        config = RqVaeConfig(
            hidden=[32], latent=LATENT, batch=32, decay=0.5, steps=60, warm_up=10, restart_dead=restart_dead
        )
        codes = fit_rq_vae(vectors_nD, levels=2, codes=300, config=config, seed=1).encode(vectors_nD)
        used.append(sum(len(np.unique(column)) for column in codes.T))
    assert used[1] > 1.05 * used[0]


def test_fewer_vectors_than_codes_are_refused_and_as_many_are_not(vectors_nD):
    with pytest.raises(InputError, match=r"`codes` is 24, but only 23 items have a vector.*codes=23 or less"):
        fit_rq_vae(vectors_nD[:23], levels=2, codes=24, config=SMALL, seed=1)
    quantizer = fit_rq_vae(vectors_nD[:24], levels=2, codes=24, config=SMALL, seed=1)
    assert quantizer.codebooks_CVd.shape == (2, 24, LATENT)
    assert np.isfinite(quantizer.reconstruct(quantizer.encode(vectors_nD[:24]))).all()


def test_vectors_all_alike():
    alike = np.full((40, 5), 2.5, np.float32)
    config = RqVaeConfig(hidden=[8], latent=3, steps=10, warm_up=2)
    quantizer = fit_rq_vae(alike, levels=2, codes=4, config=config, seed=1)
    codes = quantizer.encode(alike)
    assert codes.any(axis=1).all()
    assert (codes == codes[0]).all()
    np.testing.assert_allclose(quantizer.reconstruct(codes), alike, atol=0.1)


# ── coding ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_encode_equals_the_obvious_coding(fitted, vectors_nD):
    residual = fitted.project(vectors_nD)
    expected = np.empty((len(vectors_nD), LEVELS), np.uint16)
    for level, book in enumerate(fitted.codebooks_CVd):
        apart = np.square(residual[:, None].astype(np.float64) - book).sum(axis=2)
        expected[:, level] = apart.argmin(axis=1)
        if level == LEVELS - 1:
            zero = ~expected.any(axis=1)
            expected[zero, level] = apart[zero, 1:].argmin(axis=1) + 1
        residual = residual - book[expected[:, level]]
    found = fitted.encode(vectors_nD)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)


def test_project_and_reconstruct_are_encoder_and_decoder(fitted, vectors_nD):
    arrays = fitted.arrays()

    def through(part: str, values: np.ndarray) -> np.ndarray:
        hidden = np.maximum(values @ arrays[f"{part}_0_weight"].T.astype(np.float64) + arrays[f"{part}_0_bias"], 0)
        return hidden @ arrays[f"{part}_1_weight"].T + arrays[f"{part}_1_bias"]

    latent = through("encoder", (vectors_nD - arrays["mean"].astype(np.float64)) / arrays["scale"])
    np.testing.assert_allclose(fitted.project(vectors_nD), latent, rtol=1e-5, atol=3e-6)
    codes = fitted.encode(vectors_nD)
    for level in range(1, LEVELS + 1):
        rows = sum_of_rows(fitted.codebooks_CVd, codes[:, :level]).astype(np.float64)
        expected = through("decoder", rows) * arrays["scale"] + arrays["mean"]
        np.testing.assert_allclose(fitted.reconstruct(codes[:, :level]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_a_row_does_not_depend_on_its_neighbours(fitted, vectors_nD, monkeypatch, block):
    vectors = vectors_nD[:300]
    codes, latent, decoded = (whole := fitted.encode(vectors)), fitted.project(vectors), fitted.reconstruct(whole)
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_array_equal(fitted.encode(vectors[order]), codes[order])
    np.testing.assert_array_equal(fitted.project(vectors[order]), latent[order])
    monkeypatch.setattr(rq_vae, "_SCORES", block * CODES)
    assert len(fitted._blocks(300)) == -(-300 // block)
    np.testing.assert_array_equal(fitted.encode(vectors), codes)
    np.testing.assert_array_equal(fitted.project(vectors), latent)
    np.testing.assert_array_equal(fitted.reconstruct(codes), decoded)


def test_wide_layers_give_a_row_to_the_bit_among_any_others():
    """Widths at which an ordinary product of one row differs from that of many."""
    generator = np.random.default_rng(4)
    values = generator.standard_normal((257, 130)) * np.exp(3 * generator.standard_normal((257, 1)))
    widths = [130, 300, 65]
    layers = [
        (generator.standard_normal((after, before)).astype(np.float32), generator.random(after).astype(np.float32))
        for before, after in pairwise(widths)
    ]
    exact = _ExactLayers(layers)
    whole = exact(values)
    np.testing.assert_array_equal(np.concatenate([exact(values[[row]]) for row in range(257)]), whole)
    hidden = np.maximum(values @ layers[0][0].T.astype(np.float64) + layers[0][1], 0)
    expected = hidden @ layers[1][0].T.astype(np.float64) + layers[1][1]
    np.testing.assert_allclose(whole, expected, atol=1e-5 * np.abs(expected).max(axis=1, keepdims=True).max())


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 12), width=st.integers(1, 5), spread=st.integers(1, 3))
def test_the_first_of_the_nearest_rows_is_found_among_ties(seed, rows, width, spread):
    """Small whole numbers: distances are exact, ties and repeated rows abound."""
    generator = np.random.default_rng(seed)
    book = generator.integers(-spread, spread + 1, (rows, width)).astype(np.float32)
    vectors = generator.integers(-spread, spread + 1, (20, width)).astype(np.float32) / 2
    expected = np.square(vectors[:, None] - book).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(_NearestRow(book)(vectors), expected)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), apart=st.sampled_from([1e-3, 1e-5, 1e-6, 1e-7]), shift=st.sampled_from([0, 1, 100])
)
def test_rows_that_float32_cannot_tell_apart_are_told_apart(seed, apart, shift):
    generator = np.random.default_rng(seed)
    near = generator.standard_normal((1, 24)) + shift
    book = (near + apart * generator.standard_normal((16, 24))).astype(np.float32)
    vectors = (near + apart * generator.standard_normal((40, 24))).astype(np.float32)
    distances = np.square(vectors[:, None].astype(np.float64) - book).sum(axis=2)
    np.testing.assert_array_equal(_NearestRow(book)(vectors), distances.argmin(axis=1))


def identity(codebooks: np.ndarray) -> RqVae:
    """An RQ-VAE whose latents are its vectors, which must not be negative."""
    eye, none = np.eye(codebooks.shape[2], dtype=np.float32), np.zeros(codebooks.shape[2], np.float32)
    layers = [(eye, none), (eye, none)]
    return RqVae(codebooks, mean_D=none, scale=np.ones(1, np.float32), encoder=layers, decoder=layers)


@pytest.mark.parametrize(
    ("last", "expected"),
    [([0, 5, 3, 4], 2), ([0, 0, 3, 4], 1), ([0, 0, 0, 0], 1), ([1, 9], 1), ([0, 4, 3, 3], 2)],
)
def test_no_tuple_is_all_zero(last, expected):
    first = np.arange(len(last)) * 10.0
    quantizer = identity(np.array([first, last], np.float32)[:, :, None])
    np.testing.assert_array_equal(quantizer.encode(np.array([[0.1], [10.1]], np.float32))[0], [0, expected])
    np.testing.assert_array_equal(quantizer.encode(np.array([[10.1]], np.float32))[0], [1, 0])
    assert quantizer.encode(np.zeros((0, 1), np.float32)).shape == (0, 2)


# ── save, load, configuration ────────────────────────────────────────────────────────────────────────────────


def test_saved_and_loaded_it_is_the_same_to_the_bit(fitted, vectors_nD, tmp_path: Path):
    for name, array in fitted.arrays().items():
        assert array.dtype == np.float32, name
        np.save(tmp_path / f"{name}.npy", array)
    arrays = {path.stem: np.load(path, allow_pickle=False) for path in tmp_path.iterdir()}
    loaded = RqVae.load(arrays, json.loads(json.dumps(fitted.settings())))
    assert loaded.arrays().keys() == fitted.arrays().keys()
    for name, array in fitted.arrays().items():
        assert array.tobytes() == loaded.arrays()[name].tobytes(), name
    codes = fitted.encode(vectors_nD)
    np.testing.assert_array_equal(loaded.encode(vectors_nD), codes)
    np.testing.assert_array_equal(loaded.project(vectors_nD), fitted.project(vectors_nD))
    np.testing.assert_array_equal(loaded.reconstruct(codes), fitted.reconstruct(codes))
    shape = (loaded.num_levels, loaded.codes_per_level, loaded.vector_width, loaded.settings())
    assert shape == (LEVELS, CODES, WIDTH, {"hidden": [32]})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"mean": None}, "no array `mean`"),
        ({"codebooks": None}, "no array `codebooks`"),
        ({"scale": None}, "no array `scale`"),
        ({"decoder_1_bias": None}, "no array `decoder_1_bias`"),
        ({"encoder_2_bias": np.zeros(3, np.float32)}, "an unknown array `encoder_2_bias`"),
        ({"codebooks": np.zeros((3, 1, 8), np.float32)}, r"shape \[3, 1, 8\].*2 to 65536 codes"),
        ({"codebooks": np.zeros((3, 24, 9), np.float32)}, r"`encoder_1_weight` is float32 \[8, 32\].*\[9, 32\]"),
        ({"mean": np.zeros(16)}, r"`mean` is float64 \[16\], expected float32 \[16\]"),
        ({"mean": np.full(16, np.nan, np.float32)}, "`mean` holds a number that is not finite"),
        ({"scale": np.zeros(1, np.float32)}, "`scale` is 0.0, must be above 0"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(fitted, changes, fault):
    arrays = {name: array for name, array in {**fitted.arrays(), **changes}.items() if array is not None}
    with pytest.raises(InputError, match=fault):
        RqVae.load(arrays, fitted.settings())


@pytest.mark.parametrize("hidden", [None, [], [0], ["32"], 32])
def test_settings_without_layer_widths_are_refused(fitted, hidden):
    with pytest.raises(InputError, match="setting `hidden` is"):
        RqVae.load(fitted.arrays(), {"hidden": hidden})


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"hidden": []}, "`hidden` is empty"),
        ({"hidden": [64, 0]}, "`hidden` is 0, must be at least 1"),
        ({"latent": 0}, "`latent` is 0"),
        ({"batch": 0}, "`batch` is 0"),
        ({"steps": 0}, "`steps` is 0"),
        ({"start": "zero"}, "`start` is 'zero', expected one of principal, random"),
        ({"decay": 1.0}, "`decay` is 1.0.*never move"),
        ({"decay": math.nan}, "`decay` is nan"),
        ({"commitment": -0.1}, "`commitment` is -0.1"),
        ({"commitment": math.inf}, "`commitment` is inf"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0"),
        ({"learning_rate": math.nan}, "`learning_rate` is nan"),
        ({"warm_up": -1}, "`warm_up` is -1"),
        ({"steps": 50, "warm_up": 50}, "`warm_up` is 50, must be less than steps=50"),
    ],
)
def test_nonsense_is_refused(options, fault):
    with pytest.raises(InputError, match=fault):
        RqVaeConfig(**options)


def test_all_faults_are_told_at_once():
    with pytest.raises(InputError) as caught:
        RqVaeConfig(latent=0, decay=2.0, learning_rate=-1.0)
    assert len(caught.value.faults) == 3
