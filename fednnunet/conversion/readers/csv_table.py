"""Read a table as people save it: comma, semicolon or tab, with or without a byte order mark, any line end."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fednnunet.errors import DataError

DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        line: number of its last line in the file; the header is line 1.
        cells: column to text without blanks around it; empty where the line is too short.
        problem: what is wrong with the line as a whole, or nothing.
    """

    line: int
    cells: Mapping[str, str]
    problem: str = ""


@dataclass(frozen=True)
class Table:
    """A table's columns, in their order, and its lines that are not empty."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def locate(self, row: Row) -> str:
        """File and line of ``row``, for messages."""
        return f"{self.path.name}, line {row.line}"


def read_table(path: Path, needed: tuple[str, ...] = (), spelling: Mapping[str, str] | None = None) -> Table:
    """Read a table with a header; the delimiter is the one that its header has most of.

    Args:
        path: file to read.
        needed: required columns.
        spelling: lower-case spelling of a column to the name it gets here; other columns keep theirs.

    Raises:
        DataError: names the file: it is missing, is not text in UTF-8, has no header, names a column twice, lacks a
            needed column (and which it has), or a quotation mark is not closed.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8; save it as CSV UTF-8") from None
    header = next(iter(text.splitlines()), "")
    delimiter = max(DELIMITERS, key=header.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = _columns(next(lines, []), needed, spelling or {}, path)
        rows = tuple(_row(lines.line_num, cells, columns) for cells in lines if any(cell.strip() for cell in cells))
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: {error}; is a quotation mark without its partner?") from None
    return Table(path, columns, rows)


def _columns(header: list[str], needed: tuple[str, ...], spelling: Mapping[str, str], path: Path) -> tuple[str, ...]:
    given = tuple(spelling.get(name.strip().lower(), name.strip()) for name in header)
    if not any(given):
        raise DataError(f"{path} is empty; its first line must name the columns{_listed(' ', needed)}")
    duplicates = [name for name in given if name and given.count(name) > 1]
    if duplicates:
        raise DataError(f"{path} has the column {duplicates[0]} twice")
    missing = [name for name in needed if name not in given]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]}: it needs{_listed(' ', needed)}, and has{_listed(' ', given)}"
        )
    return given


def _row(line: int, cells: list[str], columns: tuple[str, ...]) -> Row:
    texts = [cell.strip() for cell in cells]
    texts += [""] * (len(columns) - len(texts))
    surplus = any(texts[len(columns) :])
    problem = f"{len(cells)} cells under {len(columns)} columns; text with a delimiter needs quotation marks"
    return Row(line, dict(zip(columns, texts, strict=False)), problem if surplus else "")


def _listed(before: str, names: tuple[str, ...]) -> str:
    return before + ", ".join(name for name in names if name) if names else ""
