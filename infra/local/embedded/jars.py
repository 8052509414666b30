"""Kafka's jars: fetched once by their Maven coordinates, checked against the lock each time."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from infra.local.embedded.failures import StackError

LOCK = Path(__file__).with_name("jars.lock")
FETCHERS = 8
ATTEMPTS_MAX = 3

# Called with (files fetched, files to fetch); what it raises ends the fetching.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Jar:
    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def read_lock(lock: Path = LOCK) -> list[Jar]:
    """The jars of the lock: one line each, `group artifact version sha256`."""
    lines = [line.split() for line in lock.read_text(encoding="utf-8").splitlines()]
    return [Jar(*fields) for fields in lines if fields and not fields[0].startswith("#")]


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "agent-platform" / "jars"


def locked_jars(cache: Path, progress: Progress | None = None) -> list[Path]:
    """Paths of all jars of the lock in `cache`, fetched if they are not there or not what the lock says."""
    jars = read_lock()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(FETCHERS) as pool:
            missing = [
                jar for jar, good in zip(jars, pool.map(lambda j: _is_good(cache, j), jars), strict=True) if not good
            ]
        if missing:
            _fetch(missing, cache, progress or (lambda done, total: None))
    except OSError as error:
        raise StackError(
            f"cannot keep Kafka's jars in {cache} ({error.strerror or error})",
            "set AGENT_PLATFORM_CACHE_DIR to a folder with 100 MB of space",
        ) from error
    return [cache / jar.file_name for jar in jars]


def _is_good(cache: Path, jar: Jar) -> bool:
    try:
        with (cache / jar.file_name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except FileNotFoundError:
        return False


def _fetch(jars: Sequence[Jar], cache: Path, progress: Progress) -> None:
    """Fetch into a folder beside the cache and move what is right: a broken transfer never stays."""
    done = 0
    progress(done, len(jars))
    with (
        tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as folder,
        ThreadPoolExecutor(FETCHERS) as pool,
    ):
        try:
            for jar, path in pool.map(lambda jar: (jar, _fetch_one(jar, Path(folder))), jars):
                path.replace(cache / jar.file_name)
                done += 1
                progress(done, len(jars))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_one(jar: Jar, folder: Path) -> Path:
    try:
        from jgo.maven import MavenContext  # Slow to import and needed once.
    except ImportError:
        raise StackError("Kafka's jars are not here yet and the package jgo is missing", "make setup") from None
    for attempt in range(1, ATTEMPTS_MAX + 1):
        place = folder / f"{jar.artifact}-{attempt}"
        try:
            artifact = (
                MavenContext(repo_cache=place).project(jar.group, jar.artifact).at_version(jar.version).artifact()
            )
            path = Path(artifact.resolve())
        except OSError as error:  # What requests raises descends from OSError, and so does a full disk.
            if error.errno is not None or attempt == ATTEMPTS_MAX:
                raise _unreachable(jar, folder.parent, error) from error
            continue
        except RuntimeError as error:
            raise _unreachable(jar, folder.parent, error) from error
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256:
                return path
        shutil.rmtree(place, ignore_errors=True)
    raise StackError(
        f"{jar.file_name} as fetched is not the file of infra/local/embedded/jars.lock",
        "something between here and Maven Central alters files; fetch it by another way",
    )


def _unreachable(jar: Jar, cache: Path, error: Exception) -> StackError | OSError:
    if isinstance(error, OSError) and error.errno is not None:
        return error  # The disk, not the network.
    return StackError(
        f"cannot fetch {jar.file_name} from Maven Central ({type(error).__name__})",
        f"connect to a network once, or put the files of infra/local/embedded/jars.lock into {cache}",
    )


def write_lock(coordinate: str, lock: Path = LOCK) -> None:
    """Resolve a coordinate anew and write the lock: `python -m infra.local.embedded.jars`, for maintainers."""
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as folder:
        context = MavenContext(repo_cache=Path(folder))
        root = context.create_dependency(coordinate)
        found = context.resolver.resolve([root])[1]
        # Without a binding of its logging facade the broker logs nothing.
        log4j = next(dep.version for dep in found if dep.artifactId == "log4j-core")
        names = [(d.groupId, d.artifactId, d.version) for d in [root, *found]]
        names.append(("org.apache.logging.log4j", "log4j-slf4j-impl", log4j))
        lines = [f"# {coordinate} and what it needs at run time: group artifact version sha256"]
        for group, artifact, version in sorted(names):
            path = context.project(group, artifact).at_version(version).artifact().resolve()
            lines.append(f"{group} {artifact} {version} {hashlib.sha256(path.read_bytes()).hexdigest()}")
    lock.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_lock(sys.argv[1] if len(sys.argv) > 1 else "org.apache.kafka:kafka_2.13:4.4.0")
