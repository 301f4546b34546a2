"""What is evaluated, and what it is held against: opened before anything is computed, so that nothing is in vain."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrec.distributed import DistributedModelParallel

from common.errors import InputError
from data.event_store import EventStore
from evaluation.config import EvaluateConfig
from evaluation.guardrails.ablations import read_ablations
from evaluation.outputs import RANKS, Ranks, faults_of_reference, read_ranks, reference_path
from evaluation.requests import filters_history, protocol_of
from semantic_ids.codes.code_table import CodeTable
from serving.checkpoints.chain import Link
from serving.checkpoints.manifest import Manifest
from serving.checkpoints.model import check_belongs, code_table_path, find_chain, load_model, run_storage
from sharding.world import World, alone


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a checkpoint, the store and codes that belong to it, and what it is held against.

    Args:
        references: what other runs have found, by the option that names them.
        ablated: rows of a page of ablations.
    """

    config: EvaluateConfig
    run: Path
    chain: list[Link]
    store: EventStore
    codes: CodeTable
    references: dict[str, Ranks]
    ablated: list[dict[str, Any]] | None

    @property
    def manifest(self) -> Manifest:
        """Of the checkpoint."""
        return self.chain[-1].manifest

    @property
    def protocol(self) -> str:
        """As asked for, or as it goes with the store's split."""
        return self.config.protocol or protocol_of(self.store.split_config.kind)

    @property
    def predicts_actions(self) -> bool:
        """Whether the model ranks what it is shown, instead of making lists."""
        return bool(self.manifest.model["output"]["kind"] == "actions")

    @property
    def filter_history(self) -> bool:
        """As asked for, or as it goes with the protocol."""
        asked = self.config.filter_history
        return filters_history(self.protocol) if asked is None else asked

    def about(self) -> dict[str, Any]:
        """What another evaluation must have in common to be comparable."""
        same = {
            "store_fingerprint": self.store.fingerprint,
            "split": self.store.split_config.kind,
            "events": self.config.events,
        }
        if self.predicts_actions:
            return same
        return same | {"protocol": self.protocol, "filter_history": self.filter_history}

    @property
    def table_bytes(self) -> int:
        """What all tables take, float32."""
        return sum(4 * rows * width for rows, width in self.manifest.tables.values())

    def load_model(self, world: World) -> tuple[DistributedModelParallel, World]:
        """The model, and the ranks over which its tables lie: all, or each rank alone with whole ones."""
        config = self.config
        fit = config.tables == "auto" and self.table_bytes <= config.whole_tables_gb * 1e9
        own = alone(world) if fit or config.tables == "whole" else world
        storage = run_storage(self.run, config.checkpoints)
        return load_model(storage, self.chain, own, config.attention_backend), own


def open_subject(config: EvaluateConfig, world: World) -> Subject:
    """Checkpoint, store and codes, and everything that the outcome is to be held against: nothing should be in vain.

    Raises:
        InputError: they do not belong together; fingerprints of both are named.
    """
    run = Path(config.run)
    storage = run_storage(run, config.checkpoints)
    chain = find_chain(storage, config.checkpoint)
    manifest = chain[-1].manifest
    store = EventStore.open(Path(config.store or manifest.store), verify=world.is_first_on_node)
    codes = CodeTable.open(code_table_path(run, manifest, config.codes), store)
    check_belongs(manifest, storage.where(chain[-1].name), store, codes)
    ablated = read_ablations(Path(config.ablations)) if config.ablations else None
    subject = Subject(config, run, chain, store, codes, {}, ablated)
    others = {"against": config.against, "id_baseline": config.id_baseline}
    if subject.predicts_actions:
        return subject
    references = {name: read_reference(subject, Path(given)) for name, given in others.items() if given}
    return dataclasses.replace(subject, references=references)


def read_reference(subject: Subject, run: Path) -> Ranks:
    """What another run has found of the same events.

    Raises:
        InputError: it was not evaluated, or on other events, or in another way.
    """
    path = reference_path(run, RANKS, subject.config.events)
    reference = read_ranks(path)
    faults = faults_of_reference(path, reference.about, subject.about())
    if faults:
        raise InputError(*faults)
    return reference
