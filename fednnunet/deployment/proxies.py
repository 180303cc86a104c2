"""The proxy that the environment names, as HTTP libraries heed it; its credentials are never shown."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from fednnunet.errors import ConfigError, one_line

DEFAULT_PORTS = {"http": 80, "https": 443}
"""Ports of proxies whose address has none, by scheme."""


@dataclass(frozen=True)
class Proxy:
    """A proxy; its text is the variable that names it and its address, without credentials.

    Attributes:
        variable: the variable, as it is spelt in the environment.
        url: its value.
    """

    variable: str
    url: SplitResult

    def __str__(self) -> str:
        return f"{self.variable}={_masked(self.url.geturl())}"

    @property
    def host(self) -> str:
        """Host of the proxy."""
        return str(self.url.hostname)

    @property
    def port(self) -> int:
        """Port of the proxy."""
        return self.url.port or DEFAULT_PORTS[self.url.scheme]


def proxy_to(server: str, *, tls: bool) -> Proxy | None:
    """The proxy on the way to a server, from ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``; None where there is none.

    Args:
        server: its ``host:port``.
        tls: whether the server is reached over TLS; ``HTTP_PROXY`` counts otherwise.

    Raises:
        ConfigError: as :func:`check_proxies`.
    """
    proxies = check_proxies()
    return None if proxy_bypass(server) else proxies.get("https" if tls else "http") or proxies.get("all")


def check_proxies() -> dict[str, Proxy]:
    """All proxies of the environment, by the scheme that they are for.

    HTTP clients take all of them in, even where they use none: one that cannot be used is an error for all.

    Raises:
        ConfigError: names a variable that names no HTTP proxy, and its value.
    """
    values = getproxies()
    if "*" in values.get("no", "").split(","):
        return {}
    return {scheme: _proxy(scheme, values[scheme]) for scheme in ("http", "https", "all") if values.get(scheme)}


def exempt_from_proxies(*hosts: str) -> None:
    """Exempt hosts, and leave out of ``NO_PROXY`` what HTTP clients cannot read, such as ``fe80::/10``.

    They would fail at it, although other programs take it.
    """
    given = getproxies().get("no", "")
    entries = ",".join(dict.fromkeys([*filter(None, map(_readable, given.split(","))), *hosts]))
    if entries != given:
        # Where both are set the lower-case variable counts.
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = entries


def _readable(entry: str) -> str:
    """An entry of ``NO_PROXY`` as HTTP clients read it; empty where they cannot."""
    entry = re.sub(r"^\[(.+)\](:\d+)?$", r"\1", entry.strip())
    if re.fullmatch(r"[0-9A-Fa-f.:]*:[0-9A-Fa-f.:]*:[0-9A-Fa-f.:]*", entry):
        return entry  # an address of IPv6
    try:
        httpx.URL(entry if "://" in entry else f"all://*{entry}")
    except httpx.InvalidURL:
        return ""
    return entry


def _proxy(scheme: str, value: str) -> Proxy:
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper())
    variable = next((name for name in names if os.environ.get(name)), f"the system's {scheme} proxy")
    shown = f"{variable}={_masked(value)}"
    try:
        url = urlsplit(value if "://" in value else f"http://{value}")
        is_address = bool(url.hostname) and url.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigError(f"{shown} is not the address of a proxy; it must be http://host:port, or unset")
    if url.scheme not in DEFAULT_PORTS:
        raise ConfigError(
            f"{shown} is a proxy of another kind than HTTP, which cannot be used; name an HTTP proxy there, or unset it"
        )
    return Proxy(variable, url)


def _masked(address: str) -> str:
    return one_line(re.sub(r"^(\w+://)?.*@", r"\1***@", address))
