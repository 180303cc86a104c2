"""Which tests pytest-xdist keeps in one process, so that what they share is made once.

Its own ``--dist loadgroup`` does not: version 3.8.0 appends the group to an id that pytest 9.2 reads elsewhere.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[2]
NAMED_GROUP = re.compile(r'xdist_group\("(\w+)"\)')


@cache
def group_of(file: str) -> str:
    """The group that the whole of a file of tests names, or the file."""
    named = NAMED_GROUP.search((ROOT / file).read_text(encoding="utf-8"))
    return named[1] if named else file


class ByGroup(LoadScopeScheduling):
    """Tests of a group are handed out together."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.split("::", 1)[0])
