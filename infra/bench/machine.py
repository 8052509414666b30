"""The machine that figures were measured on: without it a figure says nothing."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from infra.local.embedded.accounts import programs_for
from infra.local.embedded.jars import read_lock
from infra.local.embedded.processes import run_tool

PACKAGES = ("aiokafka", "asyncpg", "uvloop")


def facts() -> dict[str, Any]:
    """Everything that a reader needs to compare."""
    postgres = programs_for(None) / "postgres"
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "postgres": run_tool([str(postgres), "--version"], what="postgres --version").split()[-1],
        "kafka": next(jar.version for jar in read_lock() if jar.artifact.startswith("kafka_")),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
