"""Images that several nodes hold, found by salted digests; only the nodes know which cases they are."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import combinations

from fednnunet.exchange.digests import DIGESTS_FILE
from fednnunet.files import write_atomically
from fednnunet.listing import join_nodes
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import Federation

DUPLICATES = "duplicates.json"
"""File in the run's folder: each digest that several nodes sent, and which nodes."""


def find_duplicates(federation: Federation, recorder: RunRecorder) -> None:
    """Warn how many images each pair of nodes has in common, and write their digests to a file.

    Args:
        federation: its nodes have described themselves; those that may have sent digests of their images.
        recorder: takes the warnings.
    """
    holders: dict[str, list[str]] = defaultdict(list)
    silent = []
    for node in federation.nodes:
        digests = federation.described[node].image_digests
        if digests is None:
            silent.append(federation.name(node))
        for digest in digests or []:
            holders[digest].append(federation.name(node))
    shared = {digest: names for digest, names in sorted(holders.items()) if len(names) > 1}
    write_atomically(recorder.folder / DUPLICATES, json.dumps(shared, indent=1))
    if silent:
        recorder.on_message(
            f"images of {join_nodes(silent)} are not compared: fingerprint.find_duplicates is not true in its node.yaml"
        )
    pairs = Counter(pair for names in shared.values() for pair in combinations(names, 2))
    for (first, second), count in sorted(pairs.items()):
        images = "1 image" if count == 1 else f"{count} images"
        recorder.on_message(
            f"nodes {first} and {second} both hold {images}; one may be evaluated on what the other trains on. Each "
            f"finds which of its cases they are by looking up the digests of {DUPLICATES} in its own {DIGESTS_FILE}"
        )
