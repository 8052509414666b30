"""The command `ap` from outside: what goes wrong is one line with the way out and exit code 2."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patient


def ap(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("ap: ")
    return line


def test_nothing_running_is_said_so(tmp_path: Path) -> None:
    done = ap(tmp_path, "status")
    assert (done.returncode, done.stdout) == (1, "Nothing is running in .ap.\n")
    done = ap(tmp_path, "status", "--json", "--data", "x")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"data": str(tmp_path / "x"), "running": False}
    assert ap(tmp_path, "down").stdout == "Nothing is running in .ap.\n"
    assert list(tmp_path.iterdir()) == []


def test_config_shows_every_setting_with_its_origin(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AGENT_PLATFORM_LEASE_SECONDS=9\n")
    done = ap(
        tmp_path,
        "config",
        "--json",
        AGENT_PLATFORM_BOOTSTRAP_TOKEN="canary",
        AGENT_PLATFORM_REDIS_URL="redis:",
    )
    assert done.returncode == 0, done
    assert "canary" not in done.stdout
    document = json.loads(done.stdout)
    settings = {setting["name"]: setting for setting in document["settings"]}
    assert settings["AGENT_PLATFORM_LEASE_SECONDS"]["value"] == "9.0"
    assert settings["AGENT_PLATFORM_LEASE_SECONDS"]["default"] == "8"
    assert settings["AGENT_PLATFORM_LEASE_SECONDS"]["source"] == ".env"
    assert settings["AGENT_PLATFORM_BOOTSTRAP_TOKEN"]["value"] == "********"
    assert settings["AGENT_PLATFORM_BOOTSTRAP_TOKEN"]["source"] == "environment"
    assert settings["AGENT_PLATFORM_GATEWAY_PORT"]["source"] == "default"
    assert document["unused"] == ["AGENT_PLATFORM_REDIS_URL"]


def test_a_wrong_setting(tmp_path: Path) -> None:
    line = only_line(ap(tmp_path, "config", AGENT_PLATFORM_GATEWAY_PROT="1"))
    assert "did you mean AGENT_PLATFORM_GATEWAY_PORT?" in line


@pytest.mark.parametrize("role", ["worker", "executor", "gateway", "migrate"])
def test_a_role_without_servers(role: str, tmp_path: Path) -> None:
    assert "start everything by `ap up`, or set it" in only_line(ap(tmp_path, role))


def test_a_busy_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = only_line(ap(tmp_path, "up", "--port", str(port)))
    assert line == f"ap: port {port} on 127.0.0.1 is in use: choose another one with --port"


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert "data" in only_line(ap(tmp_path, "up", "--port", "0", "--data", "data"))


def test_what_ends_a_role_is_a_line_of_its_log(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        metrics = str(server.getsockname()[1])
        servers = {
            "AGENT_PLATFORM_DATABASE_URL": "postgresql://u@127.0.0.1:1/x",
            "AGENT_PLATFORM_KAFKA_BOOTSTRAP": "x:1",
        }
        json_log = {"AGENT_PLATFORM_LOG_FORMAT": "json", "AGENT_PLATFORM_METRICS_PORT": metrics}
        done = ap(tmp_path, "gateway", **servers, **json_log)
    assert (done.returncode, done.stdout) == (2, "")
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert told[-1]["level"] == "critical"
    assert "address already in use" in told[-1]["message"]
    assert told[-1]["process"].startswith("gateway-")
