"""The files that an evaluation leaves in a run folder.

R requests · T targets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from evaluation.results import EngineResult, Evaluation, Ints, Targets

EVENTS = ("test", "validation")
"""The held-out events that can be asked for."""

RANKS, FIGURES, REPORT = "ranks.parquet", "metrics.json", "report.html"

PARTS = ".evaluating"
"""Folder of what an evaluation that is not complete has found."""

_USER, _TIME, _ITEMS, _COUNTS = "user", "time", "items", "counts"
_ABOUT = b"segue"


def output_path(run: Path, file: str, events: str) -> Path:
    """Where `file` of an evaluation on those events lies: `metrics.json`, `metrics-validation.json`."""
    name = Path(file)
    return run / (file if events == "test" else f"{name.stem}-{events}{name.suffix}")


def all_outputs() -> tuple[str, ...]:
    """Names of what any evaluation may have left."""
    return tuple(output_path(Path(), file, events).name for events in EVENTS for file in (RANKS, FIGURES, REPORT))


@dataclass(frozen=True)
class Ranks:
    """What an evaluation found, as `ranks.parquet` keeps it: enough for every metric but those of whole lists.

    Args:
        targets: what was asked.
        places: by engine, 1-based place of each target [T], 0 where the list did not hold it.
        about: what was evaluated and how, by which two evaluations can be told to be comparable.
    """

    targets: Targets
    places: dict[str, Ints]
    about: dict[str, Any]

    def engine_like(self, engine: str) -> str:
        """That engine, or the one that the evaluation had first."""
        return engine if engine in self.places else next(iter(self.places))

    def evaluation(self, num_items: int) -> Evaluation:
        """As an evaluation whose lists were not kept."""
        nothing = np.zeros((len(self.targets), 0))
        engines = {
            name: EngineResult(places_T, nothing.astype(np.int32), nothing.astype(np.float32))
            for name, places_T in self.places.items()
        }
        return Evaluation(self.targets, engines, int(self.about["depth"]), num_items)


def write_ranks(path: Path, result: Evaluation, about: dict[str, Any]) -> None:
    """One row a request: the user's index, the time, the items asked for, how often each, where engines put them."""
    targets = result.targets
    offsets = pa.array(targets.offsets_R1, pa.int64())

    def lists(values_T: Ints) -> pa.Array:
        return pa.LargeListArray.from_arrays(offsets, pa.array(values_T, pa.int32()))

    columns: dict[str, Any] = {
        _USER: pa.array(targets.users_R, pa.int64()),
        _TIME: pa.array(targets.times_R, pa.int64()),
        _ITEMS: lists(targets.items_T),
        _COUNTS: lists(targets.counts_T),
    }
    columns |= {name: lists(found.places_T) for name, found in result.engines.items()}
    write_table_atomically(path, pa.table(columns).replace_schema_metadata({_ABOUT: json.dumps(about)}))


def write_table_atomically(path: Path, table: pa.Table) -> None:
    """Write a Parquet file so that a reader sees the former one or the new one, never a part."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        pq.write_table(table, aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_ranks(path: Path) -> Ranks:
    """The file that `write_ranks` wrote.

    Raises:
        InputError: there is none, or it is another kind of file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; evaluate that run first: python -m evaluation.evaluate run=…")
    try:
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[_ABOUT])
        items = table[_ITEMS].combine_chunks()
        targets = Targets(
            table[_USER].to_numpy(),
            table[_TIME].to_numpy(),
            items.offsets.to_numpy() - items.offsets[0].as_py(),
            _flat(table, _ITEMS),
            _flat(table, _COUNTS),
        )
        engines = [name for name in table.column_names if name not in (_USER, _TIME, _ITEMS, _COUNTS)]
        return Ranks(targets, {name: _flat(table, name) for name in engines}, about)
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as the ranks of an evaluation: {error}; evaluate again") from None


def _flat(table: pa.Table, name: str) -> Ints:
    values: Ints = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return values
