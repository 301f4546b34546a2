"""Steps through batches with the classes of the public HSTU code: `python -I public_hstu_child.py OPTIONS.json`

Knows nothing of Segue. Standard output has a JSON object a batch. A row of a batch is a user's newest events: ids from
1, 0 where the row is padded at its end; each input has the event after it as its target.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import fbgemm_gpu  # noqa: F401  (the jagged operators that the public code calls)
import numpy as np
import torch
from torch import Tensor

TOLD = sys.stdout
_SEQUENTIAL = "modeling.sequential"


def public(module: str, name: str) -> Any:
    """A class of the checkout."""
    return getattr(importlib.import_module(f"generative_recommenders.research.{module}"), name)


def make_model(given: dict[str, Any], items: int) -> Any:
    """As its trainer and its `hstu_encoder` put it together."""
    width, positions = given["width"], given["history"] + given["outputs"]
    preprocessor = public(
        f"{_SEQUENTIAL}.input_features_preprocessors", "LearnablePositionalEmbeddingInputFeaturesPreprocessor"
    )
    return public(f"{_SEQUENTIAL}.hstu", "HSTU")(
        max_sequence_len=given["history"],
        max_output_len=given["outputs"],
        embedding_dim=width,
        num_blocks=given["blocks"],
        num_heads=given["heads"],
        linear_dim=width,
        attention_dim=width,
        normalization="rel_bias",
        linear_config="uvqk",
        linear_activation="silu",
        linear_dropout_rate=given["dropout"],
        attn_dropout_rate=0.0,
        embedding_module=public(f"{_SEQUENTIAL}.embedding_modules", "LocalEmbeddingModule")(items, width),
        similarity_module=public("rails.similarities.dot_product_similarity_fn", "DotProductSimilarity")(),
        input_features_preproc_module=preprocessor(positions, width, given["dropout"]),
        output_postproc_module=public(f"{_SEQUENTIAL}.output_postprocessors", "L2NormEmbeddingPostprocessor")(width),
        verbose=False,
    )


class Step:
    """A training step of its trainer, on one device."""

    def __init__(self, given: dict[str, Any], items: int) -> None:
        self.model = make_model(given, items)
        self.loss = public(f"{_SEQUENTIAL}.losses.sampled_softmax", "SampledSoftmaxLoss")(
            num_to_sample=given["negatives"], softmax_temperature=given["temperature"], model=self.model
        )
        self.sampler = public(f"{_SEQUENTIAL}.autoregressive_losses", "LocalNegativesSampler")(
            num_items=items,
            item_emb=self.model._embedding_module._item_emb,
            all_item_ids=list(range(1, items + 1)),
            l2_norm=True,
            l2_norm_eps=1e-6,
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=given["learning_rate"], betas=(0.9, 0.98), weight_decay=0.0
        )

    def __call__(self, lengths_B: Tensor, ids_BN: Tensor, times_BN: Tensor) -> float:
        """One step.

        Args:
            lengths_B: inputs of each row; its target stands behind the last of them.
        """
        self.optimizer.zero_grad()
        vectors_BND = self.model.get_item_embeddings(ids_BN)
        payloads = {"timestamps": times_BN}
        states_BND = self.model(
            past_lengths=lengths_B, past_ids=ids_BN, past_embeddings=vectors_BND, past_payloads=payloads
        )
        loss, _ = self.loss(
            lengths=lengths_B,
            output_embeddings=states_BND[:, :-1],
            supervision_ids=ids_BN[:, 1:],
            supervision_embeddings=vectors_BND[:, 1:],
            supervision_weights=(ids_BN[:, 1:] != 0).float(),
            negatives_sampler=self.sampler,
            **payloads,
        )
        loss.backward()
        self.optimizer.step()
        return float(loss)


def read_rows(path: Path, history: int, positions: int) -> tuple[int, Tensor, Tensor, Tensor]:
    """Items of the catalogue; of each user with a target: inputs, ids and times of the newest events."""
    with np.load(path) as arrays:
        train_E, items = arrays["train_E"], int(arrays["num_items"])
        user_E, item_E, time_E = (arrays[name][train_E] for name in ("user_E", "item_E", "timestamp_E"))
    ends_U = np.flatnonzero(np.append(user_E[1:] != user_E[:-1], True)) + 1
    counts_U = np.minimum(np.diff(ends_U, prepend=0), history + 1)
    ends_U, counts_U = ends_U[counts_U >= 2], counts_U[counts_U >= 2]
    ids_UN = np.zeros((len(ends_U), positions), np.int64)
    times_UN = np.zeros_like(ids_UN)
    for row, (end, count) in enumerate(zip(ends_U, counts_U, strict=True)):
        ids_UN[row, :count] = item_E[end - count : end] + 1
        times_UN[row, :count] = time_E[end - count : end]
    return items, torch.from_numpy(counts_U - 1), torch.from_numpy(ids_UN), torch.from_numpy(times_UN)


def main(path: str) -> None:
    """Train so many batches, users in an order drawn anew each time all have been seen."""
    given = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(given["threads"])
    torch.manual_seed(given["seed"])
    sys.path.insert(0, given["checkout"])
    items, lengths_U, ids_UN, times_UN = read_rows(
        Path(given["events"]), given["history"], given["history"] + given["outputs"]
    )
    step = Step(given, items)
    order, size = torch.empty(0, dtype=torch.int64), given["batch_size"]
    for _ in range(given["batches"]):
        begun = time.perf_counter()
        if len(order) < size:
            order = torch.randperm(len(lengths_U))
        rows, order = order[:size], order[size:]
        loss = step(lengths_U[rows], ids_UN[rows], times_UN[rows])
        told = {"seconds": time.perf_counter() - begun, "targets": int(lengths_U[rows].sum()), "loss": loss}
        print(json.dumps(told), file=TOLD, flush=True)


if __name__ == "__main__":
    sys.stdout = sys.stderr  # whatever the public code prints is not a line of ours
    main(sys.argv[1])
