"""``fednnunet node check`` against real certificates, keys, images and servers."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from fednnunet.cli.main import main
from fednnunet.config.groups import ModelConfig
from fednnunet.config.node_file import read_node_file
from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.staging import estimate_size, stage_dataset
from fednnunet.deployment import certificates
from fednnunet.deployment.keys import make_keys
from fednnunet.deployment.node.connection import NodeConnection
from fednnunet.deployment.node.diagnosis import explain_other_version, explain_rejection
from fednnunet.deployment.node.fleet_calls import Refused
from fednnunet.deployment.node.flower_internals import ActivateNodeRequest
from fednnunet.deployment.node.preflight.checks import check_device, check_node
from fednnunet.deployment.node.preflight.results import CheckResult
from fednnunet.deployment.server import gateway
from fednnunet.fingerprint.extract import extract_fingerprint
from fednnunet.planning.plans import make_plans
from fednnunet.preprocessing import preprocess
from tests.conftest import MakeDataset
from tests.support.public_endpoint import flower_server, register
from tests.support.raw_datasets import MISREAD, write_description

NODE = "Oslo"
WriteNodeFile = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    make_keys(folder, ["127.0.0.1"], [NODE])
    return folder


@pytest.fixture
def write_node_file(tmp_path: Path, make_dataset: MakeDataset, keys: Path) -> WriteNodeFile:
    """Write a node's YAML file whose values can be changed; None leaves one out."""
    data = make_dataset()

    def write(**changes: Any) -> Path:
        values = {
            "name": NODE,
            "data": str(data),
            "server": "127.0.0.1:9",
            "certificate": str(keys / "ca.crt"),
            "key": str(keys / "nodes" / NODE / "node.key"),
            "folder": str(tmp_path / "work"),
            "compute": {"device": "cpu"},
        } | changes
        file = tmp_path / "node.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return file

    return write


def results(file: Path) -> dict[str, CheckResult]:
    return dict(check_node(file, quick=True))


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler], certificates: Path | None) -> Iterator[str]:
    """An HTTP server with the certificate in a folder, or without TLS; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificates is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Nothing(BaseHTTPRequestHandler):
    """Knows no path."""

    clock_ahead = 0.0

    def do_GET(self) -> None:
        self.send_error(404)

    do_POST = do_GET

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # a client that goes away during the handshake
            self.close_connection = True

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.clock_ahead)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_node_passes_all_checks(
    write_node_file: WriteNodeFile,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with flower_server(keys, tmp_path / "state") as (port, state):
        register(state, keys / "nodes" / NODE / "node.pub")
        file = write_node_file(server=f"127.0.0.1:{port}")
        monkeypatch.setattr(sys, "argv", ["fednnunet", "node", "check", str(file)])
        with pytest.raises(SystemExit) as finished:
            main()
    lines = capsys.readouterr().out.splitlines()
    assert finished.value.code == 0
    assert [line.split()[:2] for line in lines if line.startswith(("✓", "!", "✗", "–"))] == [
        ["✓", name]
        for name in (
            *("configuration", "versions", "data", "images", "disk", "device", "certificate", "key"),
            *("identity", "connection", "TLS", "server", "clock", "registration"),
        )
    ]
    assert "6 cases (.nii.gz), channels MRI, labels tumour" in "\n".join(lines)
    assert lines[-1] == "This node can join."
    assert not (tmp_path / "work").exists(), "nothing is left behind"


@pytest.mark.parametrize(("fields", "problem"), MISREAD.values(), ids=MISREAD)
def test_a_description_that_nnunet_would_misread_is_named(
    write_node_file: WriteNodeFile, tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    folder = tmp_path / "raw" / "Dataset102_Misread"
    write_description(folder, **fields)
    told = results(write_node_file(data=str(folder)))["data"]
    assert told.state == "bad"
    assert f"{folder}/dataset.json: " in told.found
    assert problem in told.found


def test_what_few_cases_mean_for_cross_validation_is_told(
    write_node_file: WriteNodeFile, make_dataset: MakeDataset
) -> None:
    folder = make_dataset("Dataset102_Few", cases=3)
    told = results(write_node_file(data=str(folder)))["data"]
    assert told.state == "warning"
    assert "3 training cases: folds 0 to 2 hold one out each; in the others the centre trains on all" in told.found
    assert results(write_node_file(data=str(folder), external=True))["data"].state == "good"


def test_a_running_node_is_not_disturbed(write_node_file: WriteNodeFile, keys: Path, tmp_path: Path) -> None:
    with flower_server(keys, tmp_path / "state") as (port, state):
        node = register(state, keys / "nodes" / NODE / "node.pub")
        state.activate_node(node, 30)
        before = state.get_node_info(node_ids=[node])
        assert before[0].status == "online"
        assert results(write_node_file(server=f"127.0.0.1:{port}"))["registration"].state == "good"
        assert state.get_node_info(node_ids=[node]) == before


def test_a_key_that_the_server_does_not_know_is_named(
    write_node_file: WriteNodeFile, keys: Path, tmp_path: Path
) -> None:
    make_keys(keys, ["127.0.0.1"], ["Porto"])
    with flower_server(keys, tmp_path / "state") as (port, state):
        register(state, keys / "nodes" / "Porto" / "node.pub")
        file = write_node_file(server=f"127.0.0.1:{port}")
        found = results(file)["registration"]
        told = explain_rejection("412: Failed to activate SuperNode", read_node_file(file))
        assert told.startswith(f"the server does not know {keys / 'nodes' / NODE / 'node.key'}; its operator must put")
        assert found.state == "bad"
        assert f"does not know the key {keys / 'nodes' / NODE / 'node.key'}" in found.found
        assert f"nodes/{NODE}" in found.advice


def test_a_key_of_another_hospital_is_said_to_be_whose_it_is(
    write_node_file: WriteNodeFile, keys: Path, tmp_path: Path
) -> None:
    """By the check, and by the node that tries to join; at the server by a line for its operator."""
    make_keys(keys, ["127.0.0.1"], ["Porto"])
    lines: list[str] = []
    with flower_server(keys, tmp_path / "state", notify=lines.append) as (port, state):
        register(state, keys / "nodes" / "Porto" / "node.pub")
        file = write_node_file(server=f"127.0.0.1:{port}", key=str(keys / "nodes" / "Porto" / "node.key"))
        found = results(file)["registration"]
        node = NodeConnection(read_node_file(file), {}, print)
        with pytest.raises(Refused, match=f"409: this is the key of node Porto, not of node {NODE}"):
            node.calls.call(node.calls.client.ActivateNode, ActivateNodeRequest(public_key=node.calls.public_key))
    assert found.state == "bad"
    assert f"this is the key of node Porto, not of node {NODE}" in found.found
    assert lines == [
        f"node {NODE}, at 127.0.0.1, has the key of node Porto, and is refused; were two hospitals' keys swapped?"
    ]


def test_another_version_at_the_server_is_an_error_and_the_other_checks_run(
    write_node_file: WriteNodeFile, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flower_server(keys, tmp_path / "state") as (port, state):
        register(state, keys / "nodes" / NODE / "node.pub")
        file = write_node_file(server=f"127.0.0.1:{port}")
        with monkeypatch.context() as other:
            other.setattr(gateway, "__version__", "0.0.1")
            found, told = results(file), explain_other_version(read_node_file(file))
        assert explain_other_version(read_node_file(file)) is None
    assert found["server"].state == "bad"
    assert "fednnunet 0.0.1" in found["server"].found
    assert told == f"the server has {found['server'].found}; {found['server'].advice}", "by `node up`"
    assert found["registration"].state == "good"


def test_a_server_that_does_not_report_its_version_is_a_warning(
    write_node_file: WriteNodeFile, keys: Path, tmp_path: Path
) -> None:
    with flower_server(keys, tmp_path / "state", plain=True) as (port, state):
        register(state, keys / "nodes" / NODE / "node.pub")
        found = results(write_node_file(server=f"127.0.0.1:{port}"))
    assert found["server"].state == "warning"
    assert found["registration"].state == "good"


def test_a_server_of_another_kind_is_recognized(write_node_file: WriteNodeFile, keys: Path) -> None:
    with answering(Nothing, keys) as address:
        found = results(write_node_file(server=address))["registration"]
    assert found.state == "bad"
    assert "answers 404" in found.found


@pytest.mark.parametrize(
    ("ahead", "state", "says"),
    [
        (-60.0, "bad", "60 s ahead of the server's; at most 5 s ahead"),
        (400.0, "bad", "400 s behind the server's; at most 5 s ahead and 300 s behind"),
        (100.0, "warning", "100 s behind the server's"),
        (0.0, "good", "within 2 s"),
    ],
)
def test_the_difference_between_clocks_is_reported(
    ahead: float, state: str, says: str, write_node_file: WriteNodeFile, keys: Path
) -> None:
    with answering(type("Skewed", (Nothing,), {"clock_ahead": ahead}), keys) as address:
        found = results(write_node_file(server=address))
    assert found["clock"].state == state
    assert says in found["clock"].found
    assert found["registration"].state == ("skipped" if state == "bad" else "bad")


def test_a_server_certificate_of_another_authority_is_refused(
    write_node_file: WriteNodeFile, keys: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    make_keys(theirs, ["127.0.0.1"], [])
    with answering(Nothing, theirs) as address:
        found = results(write_node_file(server=address))
    assert found["TLS"].state == "bad"
    assert f"not signed by {keys / 'ca.crt'}" in found["TLS"].found
    assert {name for name, one in found.items() if one.state == "skipped"} == {"server", "clock", "registration"}


def test_a_server_certificate_for_another_name_is_refused(write_node_file: WriteNodeFile, keys: Path) -> None:
    for name in ("server.crt", "server.key"):
        (keys / name).unlink()
    make_keys(keys, ["fed.example.org"], [])
    with answering(Nothing, keys) as address:
        found = results(write_node_file(server=address))["TLS"]
    assert found.state == "bad"
    assert found.found == "the server's certificate is not for 127.0.0.1"
    assert "--server 127.0.0.1" in found.advice


@pytest.mark.parametrize(
    ("days", "state", "says"), [(0, "bad", "certificate has expired"), (20, "warning", "for 127.0.0.1, until")]
)
def test_a_server_certificate_that_expires_soon_is_reported(
    days: int, state: str, says: str, write_node_file: WriteNodeFile, keys: Path
) -> None:
    for name in ("server.crt", "server.key"):
        (keys / name).unlink()
    make_keys(keys, ["127.0.0.1"], [], days=days)
    with answering(Nothing, keys) as address:
        found = results(write_node_file(server=address))["TLS"]
    assert found.state == state
    assert says in found.found
    assert "server.crt" in found.advice


def test_a_server_without_tls_is_reported(write_node_file: WriteNodeFile) -> None:
    with answering(Nothing, None) as address:
        found = results(write_node_file(server=address))["TLS"]
    assert found.state == "bad"
    assert "does not speak TLS" in found.found


def test_an_address_without_a_server_is_reported(write_node_file: WriteNodeFile) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        found = results(write_node_file(server=f"127.0.0.1:{unused.getsockname()[1]}"))
    assert found["connection"].state == "bad"
    assert "refuses connections" in found["connection"].found
    assert found["TLS"].state == "skipped"
    assert results(write_node_file(server="no.such.host.invalid:9092"))["connection"].found.startswith(
        "this machine's DNS does not know no.such.host.invalid"
    )


@contextmanager
def tunnelling(credentials: str) -> Iterator[tuple[str, list[str]]]:
    """A proxy that asks for a password; its address, and the hosts that were asked for."""
    asked: list[str] = []

    class Tunnel(Nothing):
        def do_CONNECT(self) -> None:
            expected = f"Basic {base64.b64encode(credentials.encode()).decode()}"
            if self.headers["Proxy-Authorization"] != expected:
                self.send_error(407)
                return
            asked.append(self.path)
            host, port = self.path.split(":")
            with socket.create_connection((host, int(port))) as there:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=copy, args=(there, self.connection))
                back.start()
                copy(self.connection, there)
                there.shutdown(socket.SHUT_RDWR)
                back.join()
                self.close_connection = True

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while chunk := source.recv(2**16):
                target.sendall(chunk)
        except OSError:  # one side has gone
            return

    with answering(Tunnel, None) as address:
        yield address, asked


def test_the_proxy_of_the_environment_is_used(
    write_node_file: WriteNodeFile, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flower_server(keys, tmp_path / "state") as (port, state), tunnelling("node:s3/cret") as (proxy, asked):
        register(state, keys / "nodes" / NODE / "node.pub")
        file = write_node_file(server=f"127.0.0.1:{port}")
        monkeypatch.setenv("HTTPS_PROXY", f"http://node:s3%2Fcret@{proxy}")
        found = results(file)
        assert {name: one.state for name, one in found.items() if one.state != "good"} == {}
        assert "proxy" in found["connection"].found
        assert asked == 3 * [f"127.0.0.1:{port}"], "TLS, server, registration"
        monkeypatch.setenv("HTTPS_PROXY", f"http://node:wrong@{proxy}")
        refused = results(file)["TLS"].found
        assert f"through the proxy HTTPS_PROXY=http://***@{proxy}: " in refused
        assert "407" in refused


def test_a_proxy_that_does_not_answer_is_named(write_node_file: WriteNodeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://node:secret@127.0.0.1:1")
    found = results(write_node_file(server="fed.example.org:9092"))["connection"]
    assert found.state == "bad"
    assert found.found == "the proxy HTTPS_PROXY=http://***@127.0.0.1:1 refuses connections"
    assert found.advice == "correct HTTPS_PROXY; where the server needs no proxy, set NO_PROXY=fed.example.org"


@pytest.mark.parametrize(
    ("key", "problem"),
    [("server", "server: Oslo is not an address; it must be host:port"), ("colour", "node.yaml: unknown key colour")],
)
def test_with_an_invalid_configuration_only_the_versions_are_tested(
    key: str, problem: str, write_node_file: WriteNodeFile
) -> None:
    found = results(write_node_file(**{key: "Oslo"}))
    assert found["configuration"].state == "bad"
    assert problem in found["configuration"].found
    assert {name for name, one in found.items() if one.state == "good"} == {"versions"}
    assert {one.state for one in found.values()} == {"good", "bad", "skipped"}


def test_missing_and_unreadable_data_are_reported(write_node_file: WriteNodeFile, make_dataset: MakeDataset) -> None:
    found = results(write_node_file(data="/no/such/Dataset001_Folder"))
    assert "there is no folder /no/such" in found["data"].found
    assert found["disk"].state == "skipped"

    data = make_dataset(name="Dataset102_Damaged")
    (data / "imagesTr" / "case_003_0000.nii.gz").write_bytes(b"no image")
    found = dict(check_node(write_node_file(data=str(data))))
    assert found["data"].state == "good"
    assert found["images"].state == "bad"
    assert "case_003_0000.nii.gz cannot be read" in found["images"].found


def test_images_on_another_grid_than_their_labels_are_a_warning(
    write_node_file: WriteNodeFile, make_dataset: MakeDataset
) -> None:
    data = make_dataset(name="Dataset103_Shifted")
    path = str(data / "labelsTr" / "case_002.nii.gz")
    label = sitk.ReadImage(path)
    label.SetOrigin((0.3, 0.0, 0.0))
    sitk.WriteImage(label, path)
    seen: list[tuple[int, int]] = []
    found = dict(check_node(write_node_file(data=str(data)), progress=lambda done, of: seen.append((done, of))))
    assert found["images"].state == "warning"
    assert "image and label of 1 case lie up to half a voxel apart" in found["images"].found
    assert "the first: case_002" in found["images"].found
    assert seen == [(done, 6) for done in range(1, 7)]

    label.SetOrigin((5.0, 0.0, 0.0))
    sitk.WriteImage(label, path)
    found = dict(check_node(write_node_file(data=str(data))))
    assert found["images"].state == "bad"
    assert "case_002.nii.gz lies elsewhere than case_002_0000.nii.gz" in found["images"].found
    found = dict(check_node(write_node_file(data=str(data), image_headers="ignore")))
    assert found["images"].state == "warning"


def test_a_read_only_work_folder_is_reported(write_node_file: WriteNodeFile, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = results(write_node_file(folder=str(tmp_path / "file" / "work")))["disk"]
    assert found.state == "bad"
    assert str(tmp_path / "file") in found.found


def test_a_disk_without_enough_space_is_reported(
    write_node_file: WriteNodeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fednnunet.deployment.node.preflight.checks.CHECKPOINTS", 2.0**60)
    (tmp_path / "work").mkdir()
    checkpoint = tmp_path / "work" / "checkpoint_round_1.pth"
    checkpoint.touch()
    os.truncate(checkpoint, 2**30)
    os.link(checkpoint, tmp_path / "work" / "checkpoint_latest.pth")
    found = results(write_node_file())["disk"]
    assert found.state == "bad"
    assert "GB free; about 1073741824.0 GB needed" in found.found
    assert "; 1.0 GB are used already" in found.found


def test_the_disk_estimate_is_close_to_what_preprocessing_uses(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    dataset = read_dataset(make_dataset(name="Dataset104_Size", cases=5, shape=(16, 96, 96)), NODE)
    stage_dataset(dataset, tmp_path / "nnUNet_raw")
    plans = make_plans(dataset.name, extract_fingerprint(dataset), ModelConfig(planner="ExperimentPlanner"), 8.0)
    planned = tmp_path / "nnUNet_preprocessed" / dataset.name
    made = preprocess(dataset, planned, plans, "2d", tmp_path / "cache")
    taken = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    assert 0.6 < taken / estimate_size(dataset, NODE) < 1.1


def test_a_missing_or_unused_device_is_reported(
    write_node_file: WriteNodeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    automatic = read_node_file(write_node_file(compute={"device": "auto"}))
    driver = tmp_path / "nvidiactl"
    assert check_device(automatic, [driver]).found.endswith("torch sees no GPU")
    driver.touch()
    assert "a GPU driver is installed, but this torch cannot use it" in check_device(automatic, [driver]).found
    assert check_device(read_node_file(write_node_file(compute={"device": "cpu"})), [driver]).state == "good"
    assert results(write_node_file(compute={"device": "cuda"}))["device"].found.startswith(
        "compute.device=cuda, but torch sees no CUDA GPU"
    )


@pytest.mark.parametrize(
    ("gpu_memory", "free", "state", "advice"),
    [
        (8, 10, "good", ""),
        (8, 6, "warning", "end the other processes on the GPU"),
        (16, 11, "bad", "set gpu_memory.gb to 11 or less"),
        (None, 1, "good", ""),
    ],
)
def test_the_memory_of_a_gpu_is_compared_with_that_of_the_plans(
    gpu_memory: float | None,
    free: int,
    state: str,
    advice: str,
    write_node_file: WriteNodeFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * 2**30, 11 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GeForce")
    found = check_device(read_node_file(write_node_file(compute={"device": "auto"}, gpu_memory={"gb": gpu_memory})))
    assert found.state == state
    assert found.found.startswith(f"GeForce with 11.0 GB, {free}.0 free")
    assert advice in found.advice


def test_a_certificate_of_no_authority_is_refused(write_node_file: WriteNodeFile, keys: Path) -> None:
    assert (
        "is not the certificate of an authority"
        in results(write_node_file(certificate=str(keys / "server.crt")))["certificate"].found
    )
    found = results(write_node_file(certificate=str(keys / "nodes" / NODE / "node.pub")))
    assert "holds no certificate (PEM), or not all of it" in found["certificate"].found
    assert found["TLS"].state == "skipped"
    assert "No such file" in results(write_node_file(certificate=str(keys / "missing.crt")))["certificate"].found


@pytest.mark.parametrize(("years", "state"), [(0, "bad"), (20 / 365, "warning")])
def test_an_authority_that_expires_soon_is_reported(
    years: float, state: str, write_node_file: WriteNodeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "CA_YEARS", years)
    make_keys(tmp_path / "old", ["127.0.0.1"], [])
    found = results(write_node_file(certificate=str(tmp_path / "old" / "ca.crt")))["certificate"]
    assert found.state == state
    assert "new ca.crt" in found.advice


def test_a_key_that_others_can_read_is_refused_with_the_command_to_fix_it(
    write_node_file: WriteNodeFile, keys: Path, tmp_path: Path
) -> None:
    key = keys / "nodes" / NODE / "node.key"
    key.chmod(0o640)
    with flower_server(keys, tmp_path / "state") as (port, state):
        register(state, key.with_suffix(".pub"))
        found = results(write_node_file(server=f"127.0.0.1:{port}"))
    assert found["key"].state == "bad"
    assert f"chmod 600 '{key}'" in found["key"].advice
    assert found["registration"].state == "good"


def test_a_key_of_another_kind_is_refused(write_node_file: WriteNodeFile, keys: Path) -> None:
    found = results(write_node_file(key=str(keys / "server.key")))["key"]
    assert "holds no private key in OpenSSH's format" in found.found
    other = keys / "other.key"
    none = serialization.NoEncryption()
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, none
    other.write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*form))
    assert "is of another kind" in results(write_node_file(key=str(other)))["key"].found


def test_without_tls_and_keys_the_server_is_still_checked(write_node_file: WriteNodeFile) -> None:
    with answering(Nothing, None) as address:
        found = results(write_node_file(server=address, insecure=True, certificate=None, key=None))
    assert found["clock"].state == "good"
    assert {name for name, one in found.items() if one.found == "none, as insecure is true"} == {
        *("certificate", "key", "TLS", "registration")
    }


def test_failed_checks_end_with_exit_code_2(
    write_node_file: WriteNodeFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_node_file(server="no.such.host.invalid:9092")
    monkeypatch.setattr(sys, "argv", ["fednnunet", "node", "check", "--quick", str(file)])
    with pytest.raises(SystemExit) as finished:
        main()
    assert finished.value.code == 2
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "images" in line.split()[:2]]
    (number,) = [number for number, line in enumerate(lines) if line.startswith("✗")]
    assert lines[number + 1].split()[0] == "→"
    assert lines[-1] == "1 to fix before this node can join."
