"""Opening the sums of a round: nodes are asked for shares of what masks them."""

from __future__ import annotations

import logging

from fednnunet.errors import ProtocolError, one_line
from fednnunet.exchange.messages import Kind, UnmaskReply, UnmaskRequest
from fednnunet.server.node_messages import build_request, parse_reply
from fednnunet.server.session import Session
from fednnunet.server.strategy.secure_average import Shares, SumsToOpen

log = logging.getLogger(__name__)


def open_sums(session: Session, sums: SumsToOpen) -> Shares:
    """Ask the nodes whose layers arrived to open the sums.

    A node that cannot be reached, or does not answer as it should, is left out: any that are enough open the sums.

    Args:
        session: of the run.
        sums: what is to be opened.

    Returns:
        Name of each node that answered to its shares, class by class.
    """
    federation, settings = session.federation, session.settings
    ids = {federation.name(node): node for node in federation.training}
    asked = sorted({name for names in sums.arrived for name in names})
    requests = [build_request(Kind.UNMASK, ids[name], _request_for(name, sums)) for name in asked]
    shares: dict[str, list[dict[str, dict[str, bytes]]]] = {}
    for message in session.client.stream(requests, settings.timeout, max(1, len(asked) - sums.spare)):
        name = federation.name(message.metadata.src_node_id)
        if message.has_error():
            log.warning("node %s does not help to open round %d: %s", name, sums.server_round, message.error.reason)
            continue
        try:
            reply = parse_reply(UnmaskReply, message, f"node {name}")
        except ProtocolError as error:
            log.warning("round %d: %s", sums.server_round, one_line(str(error)))
            continue
        shares[name] = [
            {arrival: {of: bytes.fromhex(share) for of, share in given.items()} for arrival, given in of_class.items()}
            for of_class in reply.shares
        ]
    return shares


def _request_for(name: str, sums: SumsToOpen) -> UnmaskRequest:
    """What one node is asked: nothing of classes that it is not in."""
    arrived = [list(names) if name in names else [] for names in sums.arrived]
    return UnmaskRequest(
        fold=sums.fold,
        server_round=sums.server_round,
        arrived=arrived,
        shares=[
            {sender: sums.bundles[sender][number][name] for sender in names if _has(sums, sender, number, name)}
            for number, names in enumerate(arrived)
        ],
    )


def _has(sums: SumsToOpen, sender: str, number: int, reader: str) -> bool:
    """Whether ``sender`` has sent shares of a class for ``reader``."""
    bundles = sums.bundles[sender]
    return number < len(bundles) and reader in bundles[number]
