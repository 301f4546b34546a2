"""Heads that have learnt something, and users for them to find items for: what retrieval is measured on.

B users · D model width · C levels · V codes a level · N items · n items drawn.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import ROOT, commit
from benchmarks.made_up_catalogue import MadeUpCatalogue
from data.event_store import EventStore
from data.loader import Loader, item_features
from data.sequences import request_windows
from model.config import HeadsConfig, Vocabulary
from model.heads import CascadedHeads
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.codes.code_table_files import Manifest
from semantic_ids.codes.trie import CodeTrie
from semantic_ids.codes.trie_steps import TrieSteps
from semantic_ids.quantizers.residual_kmeans import fit_residual_kmeans
from serving.checkpoints.model import find_chain, load_model, run_storage
from serving.engines.base import Query, RankedCatalogue, ranked_catalogue
from serving.engines.lookahead import steps_looking_ahead
from sharding.world import open_world

WIDTH = 64

NOISE = 2.0
"""Length of a made-up user's noise, where the vector of the next item has 1: many items are likely, as with people."""
STORE, TABLE = ROOT / "stores" / "synthetic-yambda", ROOT / "codes" / "synthetic-yambda"
RUN = ROOT / "runs" / "retrieval-yambda"
_COMMIT = "trained-at-commit.txt"
_STEPS = 6000
_TRAINING_S = 900
"""A training is asked to stop after so long, and what it has learnt by then is used."""


@dataclass(frozen=True)
class Served:
    """What engines are made of, and whom they are asked for."""

    about: str
    heads: CascadedHeads
    table: CodeTable
    trie: CodeTrie
    catalogue: RankedCatalogue
    hidden_BD: Tensor
    seen_BX: Tensor
    """Items that must not be returned, as many for each user."""

    @cached_property
    def steps(self) -> TrieSteps:
        """That look ahead, for all engines."""
        return steps_looking_ahead(self.heads, self.trie, self.hidden_BD.device)

    def first(self, users: int) -> Served:
        """Asked for fewer users."""
        return dataclasses.replace(self, hidden_BD=self.hidden_BD[:users], seen_BX=self.seen_BX[:users])

    def query(self, first: int, stop: int) -> Query:
        """Some of the users."""
        seen = self.seen_BX[first:stop]
        rows = torch.arange(len(seen)).repeat_interleave(seen.size(1))
        return Query(self.hidden_BD[first:stop], rows, seen.flatten())


def served(about: str, heads: CascadedHeads, table: CodeTable, hidden_BD: Tensor, seen: int = 200) -> Served:
    """With some items of each user excluded, the more played ones likelier."""
    random = np.random.default_rng(0)
    weights = (table.training_plays_N + 1) / (table.training_plays_N + 1).sum()
    seen_BX = random.choice(len(weights), (len(hidden_BD), seen), p=weights)
    catalogue = ranked_catalogue(table, torch.device("cpu"))
    return Served(about, heads, table, CodeTrie.of(table), catalogue, hidden_BD, torch.from_numpy(seen_BX))


def grown(made: Served, items: int, width: int) -> Served:
    """The same heads and users before a larger catalogue: items that are there, and others made of their parts.

    A new item begins with 1 … C − 1 codes of one item and ends with another's, all items and lengths alike: it comes
    where items are, makes short prefixes bushier and adds longer ones. Two new items may share a tuple, as items do.

    Args:
        items: of the larger catalogue.
        width: of its vectors: codebooks on their principal directions, so that an index of them fits into memory.
    """
    random = np.random.default_rng(0)
    table, known = made.table, np.flatnonzero(made.table.known_N)
    more = items - len(known)
    begin, end = (table.codes_NC[random.choice(known, more)] for _ in range(2))
    length_n = random.integers(1, table.num_levels, more)
    joined_NC = np.where(np.arange(table.num_levels) < length_n[:, None], begin, end)
    codes_NC = np.concatenate([table.codes_NC[known], joined_NC])
    plays_N = np.concatenate([table.training_plays_N[known], np.zeros(more, np.int64)])
    rows_Rd = table.codebooks_CVd.reshape(-1, table.codebooks_CVd.shape[2])
    directions_dd = np.linalg.svd(rows_Rd, full_matrices=False).Vh
    larger = _table(codes_NC, (table.codebooks_CVd @ directions_dd[:width].T).astype(np.float32), plays_N)
    about = f"{made.about}; beside its {len(known):,} items with codes {more:,} made of parts of theirs"
    return served(about, made.heads, larger, made.hidden_BD)


# ── heads alone, on vectors that are made up ─────────────────────────────────────────────────────────────


def made_up(items: int, users: int, steps: int, *, levels: int, codes: int) -> Served:
    """Clustered vectors, coded; heads that learn to name an item from its vector blurred, the more played more often.

    Args:
        items: that have a vector.
        steps: of training, on 512 draws each.
    """
    vectors = np.concatenate([block.vectors for block in MadeUpCatalogue(items, WIDTH).embeddings()])
    quantizer = fit_residual_kmeans(vectors, levels=levels, codes=codes, beam=1, iterations=5, seed=1)
    codes_NC = np.concatenate([quantizer.encode(part) for part in np.array_split(vectors, -(-len(vectors) // 2**17))])
    codes_NC[~codes_NC.any(axis=1), -1] = 1  # all zero would be unknown
    random = np.random.default_rng(0)
    plays_N = random.pareto(0.9, len(vectors)).astype(np.int64)
    table = _table(codes_NC, quantizer.codebooks_CVd, plays_N)
    weights = (plays_N + 1) / (plays_N + 1).sum()
    torch.manual_seed(0)
    heads = CascadedHeads(HeadsConfig(), WIDTH, Vocabulary(levels, codes, 1, 1))
    heads.start_from(torch.from_numpy(np.ascontiguousarray(quantizer.codebooks_CVd)).flatten(0, 1))
    optimizer = torch.optim.AdamW(heads.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        drawn = random.choice(len(vectors), 512, p=weights)
        logits_TCV = heads(_blurred(vectors[drawn], random), torch.from_numpy(codes_NC[drawn].astype(np.int64)))
        loss = F.cross_entropy(logits_TCV.flatten(0, 1), torch.from_numpy(codes_NC[drawn].astype(np.int64)).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hidden_BD = _blurred(vectors[random.choice(len(vectors), users, p=weights)], random)
    about = (
        f"{len(vectors):,} made-up vectors in clusters, their codes, and heads that have learnt in {steps} steps to "
        "name an item from its vector with noise, the more played items more often"
    )
    return served(about, heads.eval(), table, hidden_BD)


def _blurred(vectors_nD: npt.NDArray[np.float32], random: np.random.Generator) -> Tensor:
    """What a model might make of a user whose next item has the vector: it and some noise, of length 1."""
    noise_nD = random.standard_normal(vectors_nD.shape, np.float32)
    noise_nD *= NOISE * np.linalg.norm(vectors_nD, axis=1, keepdims=True) / WIDTH**0.5
    return F.normalize(torch.from_numpy(vectors_nD + noise_nD), dim=1)


def _table(
    codes_NC: npt.NDArray[np.uint16], codebooks_CVd: npt.NDArray[np.float32], plays_N: npt.NDArray[np.int64]
) -> CodeTable:
    """A code table that is nowhere on disk."""
    levels, codes, width = codebooks_CVd.shape
    manifest = Manifest("", 2, "", "", levels, codes, width, "", {}, "content", {}, {}, {}, {})
    return CodeTable(manifest, Path("nowhere"), codes_NC.astype(np.uint16), codebooks_CVd, plays_N)


# ── a model trained on a log ─────────────────────────────────────────────────────────────────────────────


def trained(users: int) -> Served | None:
    """The model of `RUN`, trained if it is not there, on the synthetic Yambda store.

    Returns:
        None where there is no store.
    """
    if not (STORE / "manifest.json").is_file() or not (TABLE / "manifest.json").is_file():
        return None
    if not (RUN / _COMMIT).is_file():
        _train()
    with open_world() as world:
        storage = run_storage(RUN)
        chain = find_chain(storage, "latest")
        store = EventStore.open(STORE, verify=False)
        table = CodeTable.open(TABLE, store)
        model = load_model(storage, chain, world)
        tower = model.module.tower
        loader = Loader(
            store,
            item_features(store, table.codes_NC, table.codes_per_level, tower.cfg.qr_remainders),
            request_windows(store.split().test, tower.cfg.max_history),
            tokens=4096,
            bins=1,
            rank=0,
            world_size=1,
            seed=0,
            shuffle=False,
        )
        found: list[Tensor] = []
        with torch.no_grad():
            while sum(map(len, found)) < users and len(found) < loader.steps_per_epoch(0):
                batch = loader.batch(0, len(found))
                asked = torch.nonzero(batch.offsets.diff()).squeeze(1)
                _, output = model(batch)
                found.append(output.hidden_LD[batch.offsets[asked + 1] - 1].clone())
    step, trained_at = chain[-1].manifest.step, (RUN / _COMMIT).read_text(encoding="utf-8").strip()
    about = f"the synthetic Yambda store and a model of width {WIDTH}, trained for {step} steps at commit {trained_at}"
    return served(about, tower.heads, table, torch.cat(found)[:users])


def _train() -> None:
    """Train until the steps or the time are over. The last step would validate on every user, which takes hours."""
    keys = {
        "run": RUN,
        "store": STORE,
        "codes": TABLE,
        "overwrite": "true",
        "max_steps": _STEPS,
        "epochs": 100,
        "model.width": WIDTH,
        "model.dropout": 0.0,
        "model.input_dropout": 0.1,
        "batch.windows": "tiled",
        "batch.tokens": 2048,
        "batch.bins": 1,
        "optimizer.learning_rate": 4e-3,
        "checkpoint.every": _STEPS - 1,
    }
    command = [sys.executable, "-m", "trainer.train", *(f"{key}={value}" for key, value in keys.items())]
    child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    begun, saved = time.monotonic(), RUN / "checkpoints" / f"step-{_STEPS - 1:08d}" / "manifest.json"
    try:
        while child.poll() is None and time.monotonic() - begun < _TRAINING_S and not saved.is_file():
            time.sleep(1)
        child.send_signal(signal.SIGTERM)
        child.wait(60)
    except subprocess.TimeoutExpired:
        child.kill()  # it is in its validation; what is needed is saved
        child.wait()
    (RUN / _COMMIT).write_text(commit() + "\n", encoding="utf-8")
