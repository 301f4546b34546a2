"""Lines of MovieLens's files, and the numbers in them; faults with their places."""

from __future__ import annotations

from collections.abc import Iterator

ID_LIMIT = 2**63


def lines_of(
    content: bytes, name: str, encoding: str, header: str | None, faults: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield (place, line) for each line after the header."""
    if not content.strip():
        faults.append(f"{name}: is empty, expected one line an entry")
        return
    try:
        lines = content.decode(encoding).split("\n")
    except UnicodeDecodeError as error:
        faults.append(f"{name}: byte {error.start} is not {encoding}; the file must be {encoding} text")
        return
    if header is not None and lines[0].rstrip("\r") != header:
        faults.append(_header_fault(name, lines[0].rstrip("\r"), header))
        return
    for number, line in enumerate(lines, start=1):
        if (number == 1 and header is not None) or (number == len(lines) and not line):
            continue
        yield f"{name}: line {number}", line.rstrip("\r")


def _header_fault(name: str, found: str, header: str) -> str:
    missing = [column for column in header.split("\t") if column not in found.split("\t")]
    what = f"lacks column {', '.join(f'`{column}`' for column in missing)}" if missing else "has other columns"
    return f"{name}: line 1 {what}: found {found!r}, expected {header!r}"


def whole_number(what: str, text: str, minimum: int, limit: int = ID_LIMIT) -> int:
    """A whole number; a trailing ".0" is allowed, since RecBole types ratings and times as floats."""
    digits = text.removesuffix(".0")
    if not digits.removeprefix("-").isdecimal() or not digits.isascii():
        raise ValueError(f"{what} is {text!r}, must be a whole number")
    value = int(digits)
    if value < minimum or value >= limit:
        raise ValueError(f"{what} is {value}, must be {minimum} … {limit - 1}")
    return value
