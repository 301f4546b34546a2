"""Code new items by a code table as it stands: the items of a newer event store, or rows of Parquet files.

python -m semantic_ids.encode codes=codes/x store=stores/newer out=codes/x-newer
python -m semantic_ids.encode codes=codes/x vectors=new/embeddings.parquet item=item_id vector=embed out=new/codes

With store=: a code table of the newer store. Items that the older table knows keep their tuple, whatever their vector
is by now, so that a model goes on to mean the same by it. New items that have a vector, and items that were unknown,
are coded by the frozen quantiser; the rest are unknown. Drift of the new items against the table is told, with a
verdict whether to fit anew.

With vectors=: codes of all rows, part by part, in bounded memory; a run that was killed goes on where it stopped. Ids
must differ; tuples are the quantiser's own: what a code table does to tell apart items of one catalogue does not apply.
"""

from __future__ import annotations

import common.startup  # noqa: F401  # isort: skip

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import REQUIRED, option, run_entry
from common.errors import InputError
from data.event_store import EventStore
from data.output_folder import check_apart
from semantic_ids.codes.code_table import CodeTable, check_replaceable
from semantic_ids.lifecycle.encoded_folder import check_folder, encode_files
from semantic_ids.lifecycle.newer_store import encode_store
from semantic_ids.lifecycle.vector_files import VectorFiles


@dataclass
class EncodeIdsConfig:
    """Section `encode_ids`."""

    codes: str = option(REQUIRED, "folder of the code table whose quantiser codes")
    out: str = option(
        REQUIRED,
        "with store: folder of the code table to write, replacing a code table that stands there; with vectors: folder"
        " of part files, begun or gone on with",
    )
    store: str | None = option(None, "folder of the newer event store whose items are coded; this or `vectors`")
    vectors: str | None = option(None, "Parquet file of vectors, or a folder of such files; this or `store`")
    item: str = option("item_id", "with vectors: column of item ids, whole numbers or text")
    vector: str = option("embed", "with vectors: column of vectors, lists of float or double")
    part_rows: int = option(2**20, "with vectors: rows of a part file", minimum=1)

    def __post_init__(self) -> None:
        """Refuse both kinds of input, and none."""
        if (self.store is None) == (self.vectors is None):
            found = "neither is" if self.store is None else "both are"
            raise InputError(
                f"`store` and `vectors`: {found} given; give store=… for a code table of a newer store, or vectors=… "
                "for codes of the rows of Parquet files"
            )


def encode(config: EncodeIdsConfig) -> dict[str, Any]:
    """Code a store's items, or the rows of files.

    Raises:
        InputError: what the user can mend.
    """
    given, out = Path(config.codes), Path(config.out)
    if config.store is not None:
        check_apart(out, [given, Path(config.store)])
        check_replaceable(out)
        table = CodeTable.open_alone(given)
        return encode_store(table, EventStore.open(Path(config.store)), out)
    assert config.vectors is not None, "checked by __post_init__"
    check_apart(out, [given, Path(config.vectors)])
    check_folder(out)
    table = CodeTable.open_alone(given)
    source = VectorFiles(Path(config.vectors), config.item, config.vector, table.quantizer.vector_width)
    figures = encode_files(source, table, out, config.part_rows)
    print(
        f"{out}: {figures['rows']:,} items coded by the quantiser of {table.fingerprint}, {figures['unknown']:,} of"
        f" them without a vector and unknown; {figures['parts']} parts, {figures['kept']} of which were there"
    )
    return {"out": str(out), "code_table": table.fingerprint, **figures}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_entry("semantic_ids.encode", "encode_ids", EncodeIdsConfig, encode, argv)


if __name__ == "__main__":
    sys.exit(main())
