"""Text on terminals and in pipes that cannot show every character: a plainer sign in its place, never an error."""

from __future__ import annotations

import codecs
import io
import sys
from unicodedata import normalize

PLAINER = "plainer"
"""Name of the error handler, for ``str.encode``."""
SIGNS = {
    "✓": "+",
    "✗": "x",
    "→": "->",
    "…": "...",
    "–": "-",
    "—": "-",
    "−": "-",
    "·": "-",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "↑": "^",
    "↓": "v",
    "•": "*",
    "µ": "u",
    "μ": "u",
}
LINES = {"-": "─━╌╍┄┅═╴╶╸╺╼╾", "|": "│┃┆┇║╵╷╹╻╽╿"}
"""Lines of tables and progress bars, by what stands for them."""
CROSSINGS = range(0x2500, 0x2580)
"""Where Unicode has its corners and crossings of lines."""


def write_plainer() -> None:
    """From now on, standard output and error show what their encoding lacks by plainer signs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAINER)


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(SIGNS.get(sign) or _line(sign) or _without_accent(sign) for sign in lacking), error.end


def _line(sign: str) -> str | None:
    """A sign of ASCII for one of a table's lines; None for any other sign."""
    if ord(sign) not in CROSSINGS:
        return None
    return next((plain for plain, signs in LINES.items() if sign in signs), "+")


def _without_accent(sign: str) -> str:
    return normalize("NFKD", sign).encode("ascii", "ignore").decode() or "?"


codecs.register_error(PLAINER, _plainer)
