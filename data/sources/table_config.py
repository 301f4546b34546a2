"""How any event log is to be read: which columns say what, and where its items are described."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.config import option
from common.errors import InputError
from data import schema
from data.sources.table_values import TIME_UNITS


@dataclass
class TableColumns:
    """Which column of the log says what."""

    user: str | None = option(None, "who; whole numbers or strings (required)")
    item: str | None = option(None, "what; whole numbers or strings (required)")
    timestamp: str | None = option(None, "when; a timestamp, or as `timestamp_unit` says (required)")
    event_type: str | None = option(
        None, "in which way; up to 256 names or numbers, all events are alike where not given"
    )
    duration: str | None = option(None, "length of the item in seconds; null where not known")
    organic: str | None = option(
        None, "whether the user found it: true or 1, recommended: false or 0; null where not known"
    )
    played_ratio: str | None = option(None, "how much of the item was played, in percent; null where not known")

    def named(self) -> dict[str, str]:
        """Role → column, of those that are given."""
        roles = (schema.USER, schema.ITEM, schema.TIMESTAMP, schema.EVENT_TYPE, *schema.OPTIONAL_COLUMNS)
        return {role: getattr(self, role) for role in roles if getattr(self, role) is not None}

    def __post_init__(self) -> None:
        """Check that no column has two meanings."""
        faults: list[str] = []
        meanings: dict[str, str] = {}
        for role, column in self.named().items():
            if column in meanings:
                faults.append(
                    f"`{role}` is {column!r}, which `{meanings[column]}` is as well; a column has one meaning"
                )
            meanings.setdefault(column, role)
        if faults:
            raise InputError(*faults)


@dataclass
class TableCatalogue:
    """Where the items are described."""

    path: str | None = option(None, "Parquet or CSV with what is known of the items: file, folder or glob")
    item: str | None = option(None, "its column of item ids; several rows of an item say that it has several artists")
    artist: str | None = option(None, "its column of artists: an id or name, or (Parquet) a list of them")
    title: str | None = option(None, "its column of titles")

    def __post_init__(self) -> None:
        """Check that what is given belongs together."""
        faults = []
        if self.path is None:
            faults += [f"`{key}` needs `path`" for key in ("item", "artist", "title") if getattr(self, key) is not None]
        else:
            if self.item is None:
                faults.append("`item` is required where `path` is given")
            if self.artist is None and self.title is None:
                faults.append("`artist` or `title` is required where `path` is given")
        roles = [column for column in (self.item, self.artist, self.title) if column is not None]
        if len(set(roles)) < len(roles):
            faults.append("`item`, `artist` and `title` must be different columns")
        if faults:
            raise InputError(*faults)


@dataclass
class TableEmbeddings:
    """Where the items' content embeddings are."""

    path: str | None = option(None, "Parquet with content embeddings of items, one row an item")
    item: str | None = option(None, "its column of item ids")
    vector: str | None = option(None, "its column of embeddings: lists of numbers, equally long")

    def __post_init__(self) -> None:
        """All or nothing."""
        missing = [f"`{key}`" for key in ("path", "item", "vector") if getattr(self, key) is None]
        if 0 < len(missing) < 3:
            raise InputError(f"{' and '.join(missing)} must be given as well: path, item and vector belong together")


@dataclass
class TableSeries:
    """Where slow series of its users are."""

    path: str | None = option(
        None, "Parquet or CSV with slow series of users, a row a state: file, folder or glob; rows in any order"
    )
    user: str | None = option(None, "its column of users, as in the log; `user` where not given")
    timestamp: str | None = option(None, "its column of times from which on a value holds; `timestamp` where not given")
    timestamp_unit: str | None = option(
        None, "what a number in that column counts since 1970; as in the log where not given", choices=TIME_UNITS
    )
    series: str | None = option(None, "its column of the series' names; `series` where not given")
    value: str | None = option(
        None, "its column of values: names, numbers, true or false; null ends what was known; `value` where not given"
    )

    def named(self) -> dict[str, str]:
        """Role → column."""
        roles = (schema.USER, schema.TIMESTAMP, schema.SERIES, schema.VALUE)
        return {role: getattr(self, role) or role for role in roles}

    def __post_init__(self) -> None:
        """Check that what is given belongs together."""
        columns = self.named()
        faults = []
        if self.path is None:
            faults += [
                f"`{key}` needs `path`" for key in (*columns, "timestamp_unit") if getattr(self, key) is not None
            ]
        if len(set(columns.values())) < len(columns):
            faults.append("`user`, `timestamp`, `series` and `value` must be different columns")
        if faults:
            raise InputError(*faults)


@dataclass
class TableConfig:
    """How a log is read; what it means is told by the keys of `data.prepare`."""

    path: str
    columns: TableColumns
    catalogue: TableCatalogue = field(default_factory=TableCatalogue)
    embeddings: TableEmbeddings = field(default_factory=TableEmbeddings)
    series: TableSeries = field(default_factory=TableSeries)
    timestamp_unit: str = "s"
    separator: str | None = None
    sorted: bool = False
