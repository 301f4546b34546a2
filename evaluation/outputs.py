"""The files that an evaluation leaves in a run folder.

R requests · T targets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from common.files import write_file_aside
from evaluation.results import EngineResult, Evaluation, Ints, Targets

EVENTS = ("test", "validation")
"""The held-out events that can be asked for."""

RANKS, PREDICTIONS, FIGURES, REPORT = "ranks.parquet", "predictions.parquet", "metrics.json", "report.html"

PARTS = ".evaluating"
"""Folder of what an evaluation that is not complete has found."""

_USER, _TIME, _ITEMS, _COUNTS = "user", "time", "items", "counts"
ABOUT = b"segue"
"""Where a Parquet file says what it is about."""

EVALUATE = "evaluate that run: python -m evaluation.evaluate run=…"

_MAKES = {RANKS: "retrieves items", PREDICTIONS: "predicts actions"}


def output_path(run: Path, file: str, events: str) -> Path:
    """Where `file` of an evaluation on those events lies: `metrics.json`, `metrics-validation.json`."""
    name = Path(file)
    return run / (file if events == "test" else f"{name.stem}-{events}{name.suffix}")


def all_outputs() -> tuple[str, ...]:
    """Names of what any evaluation may have left, one that was ended in the middle included."""
    files = (RANKS, PREDICTIONS, FIGURES, REPORT)
    return PARTS, *(output_path(Path(), file, events).name for events in EVENTS for file in files)


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
    write_table_atomically(path, pa.table(columns).replace_schema_metadata({ABOUT: json.dumps(about)}))


def write_table_atomically(path: Path, table: pa.Table) -> None:
    """Write a Parquet file so that a reader sees the former one or the new one, never a part."""
    with write_file_aside(path) as aside:
        pq.write_table(table, aside)


@contextmanager
def reading(path: Path, what: str, remedy: str) -> Iterator[pa.Table]:
    """Yield the table of a Parquet file, and name the file in whatever goes wrong while it is taken apart.

    Raises:
        InputError: there is none, or it is not `what`; with what to do.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remedy}")
    try:
        yield pq.read_table(path)
    except (pa.ArrowException, KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{path}: cannot be read as {what}: {error}; {remedy}") from None


def reference_path(run: Path, file: str, events: str) -> Path:
    """Where another run's `file` lies, that an evaluation is to be held against.

    Raises:
        InputError: that run makes something else.
    """
    path = output_path(run, file, events)
    (other,) = _MAKES.keys() - {file}
    if not path.is_file() and output_path(run, other, events).is_file():
        raise InputError(
            f"{run}: {_MAKES[other]}, and the run to be evaluated {_MAKES[file]}: their figures cannot be compared; "
            f"name a run of the same kind"
        )
    return path


def faults_of_reference(path: Path, theirs: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two evaluations lack to be comparable, by what each says that it is about."""
    return [
        f"{path}: its {name} is {theirs.get(name)!r}, here it is {value!r}; only evaluations of the same events, in "
        f"the same way, can be compared"
        for name, value in here.items()
        if theirs.get(name) != value
    ]


def read_ranks(path: Path) -> Ranks:
    """The file that `write_ranks` wrote.

    Raises:
        InputError: there is none, or it is another kind of file.
    """
    with reading(path, "the ranks of an evaluation", EVALUATE) as table:
        about = json.loads(table.schema.metadata[ABOUT])
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


def _flat(table: pa.Table, name: str) -> Ints:
    values: Ints = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return values
