"""What ``deploy/`` offers fits the code: the example configuration, units, compose files, the image's files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fednnunet.cli.main import app
from fednnunet.config.node_file import NodeFile, read_node_file

pytestmark = pytest.mark.unit

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSED = sorted(DEPLOY.glob("compose.*.yaml"))
TO_FILL_IN = ("name", "data", "server", "certificate", "key", "folder")
COMMANDS = {("server", "up"), ("server", "status"), ("node", "up"), ("node", "check")}


def services(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())["services"]


def test_the_example_names_every_key_and_optional_keys_have_their_defaults() -> None:
    values = yaml.safe_load((DEPLOY / "node.yaml").read_text())
    assert set(values) == set(NodeFile.model_fields)
    node_file = read_node_file(DEPLOY / "node.yaml")
    for key, field in NodeFile.model_fields.items():
        if key not in TO_FILL_IN:
            assert getattr(node_file, key) == field.default, key
    for group in ("compute", "gpu_memory", "fingerprint", "init"):
        assert set(values[group]) == set(type(getattr(node_file, group)).model_fields), group
    assert node_file.certificate == DEPLOY / "ca.crt"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    content = unit.read_text()
    assert content.count("/opt/fednnunet/bin/fednnunet") == 1
    copy = tmp_path / unit.name
    copy.write_text(content.replace("/opt/fednnunet/bin/fednnunet", sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_units_and_containers_start_valid_commands() -> None:
    started = [re.findall(r"^ExecStart=\S+ (.*)$", unit.read_text(), re.M)[0].split() for unit in UNITS]
    for file in COMPOSED:
        for service in services(file).values():
            if "entrypoint" not in service:
                started += [service["command"], service["healthcheck"]["test"][2:]]
    assert {(group, command) for group, command, *_ in started} == COMMANDS
    for arguments in started:
        asked = CliRunner().invoke(app, [*arguments[:2], "--help"])
        assert asked.exit_code == 0
        for option in (argument for argument in arguments if argument.startswith("--")):
            assert option in asked.output


@pytest.mark.parametrize("file", COMPOSED, ids=lambda path: path.stem)
def test_containers_run_without_privileges_and_write_only_to_their_volumes(file: Path) -> None:
    assert services(file)
    volumes = yaml.safe_load(file.read_text())["volumes"]
    for service in services(file).values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert "privileged" not in service
        mounts = [mount.split(":") for mount in service["volumes"]]
        writable = {source for source, _, *options in mounts if options != ["ro"]}
        assert writable <= {*volumes, "./runs"}


def test_the_image_copies_existing_files_of_its_context() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    ignored = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    assert all((DEPLOY.parent / name).exists() for name in copied)
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert lines[[line.startswith("ENTRYPOINT") for line in lines].index(True) - 2] == "USER fednnunet"
