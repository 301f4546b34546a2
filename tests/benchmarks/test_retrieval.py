"""The benchmark of retrieval, on a catalogue that takes a second."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import retrieval
from benchmarks.harness import Findings
from benchmarks.retrieval_models import grown, made_up

FIGURES = {
    "items",
    "beam_speedup_vs_exact",
    "beam_recall_at_100",
    "faiss_recall_at_100",
    "users_per_s_beam",
    "users_per_s_exact",
    "beam_share_of_limit",
}


def test_every_engine_is_compared_with_exact_lists() -> None:
    made, findings = made_up(1200, 6, steps=3, levels=3, codes=16), Findings()
    figures = retrieval.compare(made, retrieval.SMALL, findings, exact_users=6)
    assert figures.keys() >= FIGURES
    assert figures["items"] == made.catalogue.size == 984
    assert figures["bounded_same_as_exact"] == pytest.approx(1, abs=0.02)
    assert 0.9 < figures["beam_recall_at_100"] <= 1
    assert 0 < figures["beam_share_of_limit"] < 1
    assert [title for title, _ in findings.sections] == ["984 items"]


def test_a_grown_catalogue_has_the_items_that_there_were_and_parts_of_them() -> None:
    made = made_up(600, 4, steps=1, levels=4, codes=8)
    larger = grown(made, 2000, 16)
    known = int(made.table.known_N.sum())
    assert len(larger.table.codes_NC) == 2000
    assert (larger.table.codes_NC[:known] == made.table.codes_NC[made.table.known_N]).all()
    known_nC = made.table.codes_NC[made.table.known_N]
    lengths = []
    for codes in larger.table.codes_NC[known:]:
        parts = (
            [known_nC[:, :cut] == codes[:cut] for cut in (1, 2, 3)],
            [known_nC[:, cut:] == codes[cut:] for cut in (1, 2, 3)],
        )
        fits = [begin.all(1).any() and end.all(1).any() for begin, end in zip(*parts, strict=True)]
        assert any(fits)
        lengths.append(fits)
    assert np.any(lengths, axis=0).all()  # all lengths come about
    assert larger.table.codebooks_CVd.shape == (4, 8, 16)
    assert torch.equal(larger.hidden_BD, made.hidden_BD)


def test_recall_is_of_the_true_list() -> None:
    true = torch.tensor([[1, 2, 3], [4, -1, -1]])
    assert retrieval.recall(true, true) == 1
    assert retrieval.recall(torch.tensor([[3, 9, -1], [-1, -1, -1]]), true) == 0.25
    assert retrieval.recall(torch.tensor([[2, 3], [4, 1]]), true) == 0.75


def test_agreement_is_by_place() -> None:
    lists = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[0.0, -1.0], [0.0, -2.0], [0.0, 0.0]])
    exact = torch.tensor([[1, 2], [4, 3]]), torch.tensor([[0.0, -1.0], [0.0, -2.5]])
    assert retrieval.agreement(lists, exact) == (0.5, 0.5)
