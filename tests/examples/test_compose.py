"""examples/compose: its structure, and its commands run by processes of this machine in place of containers."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lash_redis.embedded import wheel_binary
from tests.support.command_line import lash_redis_program
from tests.support.paths import ROOT
from tests.support.processes import free_port
from tests.support.services import Service

FOLDER = ROOT / "examples" / "compose"
FILE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, Any] = FILE["services"]
WORKERS = [service for service in SERVICES.values() if "build" in service]
DOCKERFILE = (FOLDER / "Dockerfile").read_text("utf-8")


def test_two_workers_of_one_image_wait_for_a_healthy_valkey() -> None:
    assert len(WORKERS) == 2
    for worker in WORKERS:
        assert worker["depends_on"] == {"valkey": {"condition": "service_healthy"}}
        host = re.fullmatch(r"redis://(\w+):6379", worker["environment"]["CHAT_REDIS_URL"])
        assert host is not None
        assert host[1] in SERVICES
        assert (FOLDER / worker["build"]["context"]).resolve() == ROOT
        assert ROOT / worker["build"]["dockerfile"] == FOLDER / "Dockerfile"
    assert {worker["ports"][0] for worker in WORKERS} == {"127.0.0.1:8001:8000", "127.0.0.1:8002:8000"}
    assert SERVICES["valkey"]["healthcheck"]["test"][0] == "CMD"
    assert {volume.partition(":")[0] for volume in SERVICES["valkey"]["volumes"]} == set(FILE["volumes"])


def test_the_image_copies_what_exists_and_the_service_that_it_starts() -> None:
    copied = [path for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE) for path in line.split()[:-1]]
    service = (ROOT / "examples" / "fastapi").glob("*.py")
    assert {str(path.relative_to(ROOT)) for path in service} <= set(copied)
    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert "ENV CHAT_REDIS_URL" not in DOCKERFILE  # the service reads it from compose.yaml
    assert "CHAT_REDIS_URL" in (ROOT / "examples" / "fastapi" / "app.py").read_text("utf-8")


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[str]:
    """The URL of a server that was started by the command of the file."""
    name, *options = shlex.split(SERVICES["valkey"]["command"])
    assert name == "valkey-server"
    port = free_port()
    command = [str(wheel_binary()), *options, "--port", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        yield f"redis://127.0.0.1:{port}"
        process.terminate()


@pytest.mark.slow
def test_its_commands_pass_the_doctor_and_either_worker_resumes_the_chats_of_the_other(
    valkey: str, start: Callable[..., Service]
) -> None:
    doctor = lash_redis_program("doctor", "--url", valkey, "--json")
    assert doctor.communicate(timeout=60)[1] == ""
    assert doctor.returncode == 0
    first, second = (start("fastapi", CHAT_REDIS_URL=valkey) for _ in WORKERS)
    ann = {"X-User": "ann"}
    chat = "/chats/" + httpx.post(f"{first.url}/chats", json={"title": "Trip"}, headers=ann).json()["id"]
    httpx.post(f"{first.url}{chat}/messages", json={"content": "Hello"}, headers=ann).raise_for_status()
    messages = httpx.get(f"{second.url}{chat}", headers=ann).json()
    assert [message["content"] for message in messages] == ["Hello", "Echo: Hello"]
