"""Nodes' keys while the server runs: who may join follows the keys folder, both ways, and each change is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from fednnunet.deployment.keys import nodes_folder, read_node_keys
from fednnunet.deployment.server.flower_internals import public_key_to_bytes
from fednnunet.deployment.server.flower_superlink import NodeRegister
from fednnunet.errors import one_line

POLL_SECONDS = 1.0

log = logging.getLogger(__name__)


class Registration:
    """Lets those nodes in whose keys are in a folder, and nobody else.

    A node whose key cannot be used is left out by name; the others are not affected. A key that comes back is the node
    that it was before, with the messages that wait for it.

    Args:
        register: nodes that the SuperLink knows.
        notify: gets a line for the operator.
    """

    def __init__(self, register: NodeRegister, notify: Callable[[str], None]) -> None:
        self._register = register
        self._notify = notify
        self._seen: tuple[dict[str, bytes], dict[str, str]] | None = None
        self._left_out: dict[str, str] = {}

    def follow(self, keys: Path) -> None:
        """Make the registered nodes those of the folder, and tell what that changes.

        Raises:
            ConfigError: the folder cannot be read; who is registered stays so.
        """
        readable, problems = read_node_keys(keys)
        wanted = {name: public_key_to_bytes(key) for name, key in readable.items()}
        if (wanted, problems) == self._seen:
            return
        names, left_out = self._owners(wanted)
        left_out |= problems
        lines = self._apply(names, left_out)
        lines += [
            f"node {name} is left out: {problem}"
            for name, problem in left_out.items()
            if self._left_out.get(name) != problem
        ]
        if not lines and self._seen is None:
            lines = [f"{len(names)} nodes may join"]
        for line in lines:
            self._notify(line)
        self._seen, self._left_out = (wanted, problems), left_out

    def _owners(self, wanted: dict[str, bytes]) -> tuple[dict[bytes, str], dict[str, str]]:
        """The node that each key is of, and why other nodes are left out: two have one key.

        The key stays with the node that it is registered for; where it is registered for neither, both are left out.
        """
        nodes_of_key: dict[bytes, list[str]] = {}
        for name, key in wanted.items():
            nodes_of_key.setdefault(key, []).append(name)
        registered = {node.public_key: node.name for node in self._register.nodes() if node.is_registered}
        owners, left_out = {}, {}
        for key, names in nodes_of_key.items():
            owner = names[0] if len(names) == 1 else registered.get(key)
            if owner in names:
                owners[key] = owner
            for name in names:
                if name != owner:
                    others = ", ".join(other for other in names if other != name)
                    left_out[name] = f"its key is also that of node {others}; each node needs its own node.pub"
        return owners, left_out

    def _apply(self, names: dict[bytes, str], left_out: dict[str, str]) -> list[str]:
        """Register and unregister; a line for each change, but none for a node that is told to be left out."""
        known = {node.public_key: node for node in self._register.nodes()}
        before = {node.name: key for key, node in known.items() if node.is_registered}
        lines = []
        for name, key in before.items():
            if key not in names:
                self._register.remove(known[key].node_id)
                if name not in names.values() and name not in left_out:
                    lines.append(f"node {name} may no longer join")
        for key, name in names.items():
            node = known.get(key)
            if node is None:
                self._register.add(name, key)
            elif not node.is_registered or node.name != name:
                self._register.restore(node.node_id, name)
            else:
                continue
            if node is not None and node.is_registered:
                lines.append(f"node {name} may join, with the key that was node {node.name}'s until now")
            elif name in before:
                lines.append(f"node {name} may join with a new key, and no longer with its former one")
            else:
                lines.append(f"node {name} may join")
        return lines


async def watch_keys(registration: Registration, keys: Path, notify: Callable[[str], None]) -> None:
    """Follow the keys folder until cancelled; what fails is told once, and tried again.

    Args:
        registration: of the SuperLink.
        keys: folder with ``nodes/*/node.pub``.
        notify: gets a line for the operator.
    """
    last_problem = ""
    while True:
        try:
            await asyncio.to_thread(registration.follow, keys)
            last_problem = ""
        except Exception as error:  # a full disk, for example: who is registered stays so
            problem = one_line(str(getattr(error, "detail", "") or error))
            if problem != last_problem:
                log.warning("the keys in %s were not registered", nodes_folder(keys), exc_info=error)
                notify(f"the keys in {nodes_folder(keys)} cannot be registered ({problem}); it is tried again")
                last_problem = problem
        await asyncio.sleep(POLL_SECONDS)
