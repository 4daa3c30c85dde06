"""Starts services of the folder `examples`, and stops them after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.services import Service


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def started(name: str | Path, *options: str, kind: type[Service] = Service, **environment: str) -> Service:
        services.append(kind(name, tmp_path, *options, **environment))
        services[-1].wait()
        return services[-1]

    yield started
    for service in services:
        service.stop()
