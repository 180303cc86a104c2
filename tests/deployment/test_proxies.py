"""Proxies and certificate files that the environment names, as nodes and operators meet them."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from fednnunet.config.node_file import NodeFile
from fednnunet.deployment.keys import make_keys, read_private_key
from fednnunet.deployment.node.diagnosis import explain_unreachable
from fednnunet.deployment.node.flower_internals import ActivateNodeRequest, fleet_client
from fednnunet.deployment.proxies import check_proxies, exempt_from_proxies, proxy_to
from fednnunet.deployment.server.operator_client import SERVER_FILE, Operator, ServerFacts, write_token
from fednnunet.errors import ConfigError

pytestmark = pytest.mark.unit
SERVER = "fed.example.org:9092"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({}, "None"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "HTTPS_PROXY=http://proxy:3128"),
        ({"https_proxy": "proxy:3128", "HTTPS_PROXY": "http://other:1"}, "https_proxy=http://proxy:3128"),
        ({"ALL_PROXY": "http://node:p@ss@proxy:3128"}, "ALL_PROXY=http://***@proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128"}, "None"),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "intranet, .example.org"}, "None"),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": SERVER}, "None"),
        ({"HTTPS_PROXY": "ftp://no.proxy", "NO_PROXY": "*"}, "None"),
    ],
)
def test_the_proxy_on_the_way_is_named_without_its_credentials(
    variables: dict[str, str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(proxy_to(SERVER, tls=True)) == shown
    httpx.Client().close()  # takes them, too


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("socks5://user:secret@127.0.0.1:1080", "ALL_PROXY=socks5://***@127.0.0.1:1080 is a proxy of another kind"),
        ("http://proxy:port", "ALL_PROXY=http://proxy:port is not the address of a proxy"),
        ("http://", "ALL_PROXY=http:// is not the address of a proxy"),
        ("http://[::1", "ALL_PROXY=http://[::1 is not the address of a proxy"),
    ],
)
def test_a_variable_that_names_no_http_proxy_is_named_before_anything_starts(
    value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(ConfigError, match=r"^ALL_PROXY=") as raised:
        check_proxies()
    assert problem in str(raised.value)
    assert "secret" not in str(raised.value)


def test_exemptions_that_http_clients_cannot_read_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = "localhost, [::1],fe80::/10,host:port,fd00::7,10.0.0.0/8,[fd00::8]:9092,*.ü.de"
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, entries)
    with pytest.raises(httpx.InvalidURL):
        httpx.Client()
    exempt_from_proxies("127.0.0.1")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "localhost,::1,fd00::7,10.0.0.0/8,fd00::8,127.0.0.1"
    httpx.Client().close()


def test_a_node_names_the_proxy_that_it_cannot_reach_its_server_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_keys(tmp_path, ["127.0.0.1"], ["Oslo"])
    key = tmp_path / "nodes" / "Oslo" / "node.key"
    node_file = NodeFile(
        name="Oslo", data=1, server=SERVER, certificate=tmp_path / "ca.crt", key=key, folder=tmp_path / "work"
    )
    for proxy, problem in {
        "127.0.0.1:1": "Connection refused",
        "no.such.host.invalid": "this machine's DNS does not know no.such.host.invalid",
    }.items():
        monkeypatch.setenv("https_proxy", f"http://node:secret@{proxy}")
        with fleet_client(node_file, read_private_key(key)) as client, pytest.raises(httpx.TransportError) as raised:
            client.ActivateNode(ActivateNodeRequest())
        explained = explain_unreachable(raised.value, node_file)
        assert explained == f"through the proxy https_proxy=http://***@{proxy}: {problem}"


class Polls(BaseHTTPRequestHandler):
    """A server that no node has asked for a message."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        pass


def test_certificate_files_and_proxies_of_the_environment_do_not_stand_between_operator_and_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")  # restored afterwards: the operator adds to it
    monkeypatch.setenv("no_proxy", "")
    write_token(tmp_path)
    with HTTPServer(("127.0.0.1", 0), Polls) as server:
        at = f"127.0.0.1:{server.server_port}"
        facts = ServerFacts(at, at, tls=False, keys=None, pid=1, version="", started="")
        (tmp_path / SERVER_FILE).write_text(json.dumps(asdict(facts)))
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert Operator(tmp_path).polls() == {}
        thread.join()
