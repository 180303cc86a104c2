"""Images that several nodes hold, found by salted digests; which cases they are only the nodes can tell."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import combinations

from fednnunet.exchange.digests import DIGESTS_FILE
from fednnunet.files import write_atomically
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import Federation

DUPLICATES = "duplicates.json"
"""In the run's folder: each digest that several nodes told, and which nodes."""


def find_duplicates(federation: Federation, journal: RunRecorder) -> None:
    """Warn of images that two nodes hold, by how many they are, and write down their digests.

    Args:
        federation: its nodes have told of themselves, and of their images where they may.
        journal: takes the warnings.
    """
    holders: dict[str, list[str]] = defaultdict(list)
    silent = []
    for node in federation.by_name():
        digests = federation.described[node].image_digests
        if digests is None:
            silent.append(federation.name(node))
        for digest in digests or []:
            holders[digest].append(federation.name(node))
    shared = {digest: names for digest, names in sorted(holders.items()) if len(names) > 1}
    write_atomically(journal.folder / DUPLICATES, json.dumps(shared, indent=1))
    if silent:
        journal.message(
            f"not compared are the images of {', '.join(silent)}: find_duplicates is not true in its node.yaml"
        )
    pairs = Counter(pair for names in shared.values() for pair in combinations(names, 2))
    for (first, second), count in sorted(pairs.items()):
        images = "1 image" if count == 1 else f"{count} images"
        journal.message(
            f"nodes {first} and {second} both hold {images}; what one trains on the other may score on. Which cases "
            f"they are, each finds by the digests in {DUPLICATES} in its own {DIGESTS_FILE}"
        )
