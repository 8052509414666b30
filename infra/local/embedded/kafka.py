"""Apache Kafka 4.4, one KRaft node that is broker and controller, on one data folder.

None of its files names that folder, and all paths in them are relative to it: see `HERE`. A list of folders, as
`log.dirs` is, knows no escape for a comma, and Java reads names by the rules of the locale.
"""

import asyncio
import base64
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.local.embedded.failures import StackError
from infra.local.embedded.processes import (
    HERE,
    KILL,
    LOOPBACK,
    Note,
    Patience,
    Say,
    accepts,
    log_tail,
    no_note,
    run_tool,
    silence,
    spawn,
    stop_child,
    write_atomically,
)

START_SECONDS_MAX = 180.0
"""Recovery after a kill, on a busy host, included."""
ANSWER_SECONDS_MAX = 5.0
"""Of one question to the broker."""
STOP: tuple[tuple[int, float], ...] = ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0))

PROPERTIES: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # One node holds the only copy of everything.
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    # A publisher that hangs in its transaction holds its partitions so long; the default is 15 minutes.
    "transaction.max.timeout.ms": "60000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # With the defaults a broker that was killed stays fenced for nine seconds after its restart.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "300",
    "message.max.bytes": str(8 * 1024 * 1024),
    "replica.fetch.max.bytes": str(8 * 1024 * 1024),
    "log.segment.bytes": str(128 * 1024 * 1024),
    "log.index.size.max.bytes": str(1024 * 1024),
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "2",
}

LOGGING = """\
<Configuration status="error">
  <Appenders><Console name="out"><PatternLayout pattern="%d{ISO8601} %p %c{1}: %m%n"/></Console></Appenders>
  <Loggers><Root level="warn"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


class Kafka:
    """One broker. `start` formats the data folder if need be; may be started and stopped repeatedly.

    `full_jit` makes it start a second later and run faster once warm. `properties` are added to the broker's.
    """

    def __init__(
        self,
        data: Path,
        log: Path,
        note: Note = no_note,
        *,
        full_jit: bool = False,
        heap_megabytes: int = 512,
        properties: Mapping[str, str] | None = None,
        waiting: Say = silence,
        start_seconds_max: float = START_SECONDS_MAX,
    ) -> None:
        self.data = data.absolute()
        self.log = log
        self._note = note
        self.port = 0
        self.controller_port = 0
        self.child: subprocess.Popen[bytes] | None = None
        self._full_jit = full_jit
        self._heap_megabytes = heap_megabytes
        self._properties = dict(properties or {})
        self._waiting = waiting
        self._start_seconds_max = start_seconds_max
        self._command: list[str] = []

    @property
    def bootstrap(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def prepare(self, java: Path, jars: list[Path], port: int, controller_port: int) -> None:
        """Write the configuration and format the folder once. Blocks for a second the first time."""
        self.write_configuration(jars, port, controller_port)
        self._command = [str(java), "@java.args"]
        self._format()

    def write_configuration(self, jars: Sequence[Path], port: int, controller_port: int) -> None:
        """Write what Kafka reads at its start. `jars`: all in one folder."""
        self.port, self.controller_port = port, controller_port
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.data / "server.properties", self._server_properties().encode())
        write_atomically(self.data / "log4j2.xml", LOGGING.encode())
        (self.data / "jars").unlink(missing_ok=True)
        (self.data / "jars").symlink_to(jars[0].parent.absolute())
        classpath = ":".join(f"jars/{jar.name}" for jar in jars)
        jit = [] if self._full_jit else ["-XX:TieredStopAtLevel=1"]
        options = [
            f"-Xmx{self._heap_megabytes}m", "-XX:+UseSerialGC", *jit, "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true", f"-Duser.dir={HERE}", "-Dlog4j2.configurationFile=log4j2.xml",
            "-cp", classpath,
        ]  # fmt: skip
        write_atomically(self.data / "java.args", "\n".join(f'"{option}"' for option in options).encode())

    async def start(self) -> None:
        """Start and wait until it answers as an unfenced broker. Raises StackError."""
        command = [*self._command, "kafka.Kafka", "server.properties"]
        self.child = spawn(command, log=self.log, folder=self.data, environment=_environment())
        patience = Patience("Kafka", self._start_seconds_max, self._waiting)
        try:
            self._note(self.child.pid)
            if await self._is_ready(patience):
                return
        except BaseException:
            await self.stop()
            raise
        await self.stop()
        reason = log_tail(self.log, ("Exception", "ERROR", "FATAL", "Error"))
        raise StackError(f"Kafka did not start{patience.spent} ({reason})", f"see {self.log}")

    async def stop(self) -> None:
        """Stop in order (SIGTERM), by force if it does not within 15 seconds."""
        if self.child is not None:
            await stop_child(self.child, STOP)
            self.child = None

    async def kill(self) -> None:
        """kill -9 the broker; `start` brings it back on the same port with its data."""
        if self.child is not None:
            await stop_child(self.child, KILL)
            self.child = None

    def exit_status(self) -> int | None:
        return None if self.child is None else self.child.poll()

    def _server_properties(self) -> str:
        properties = {
            **PROPERTIES,
            "listeners": f"PLAINTEXT://{LOOPBACK}:{self.port},CONTROLLER://{LOOPBACK}:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{self.port}",
            "controller.quorum.voters": f"1@{LOOPBACK}:{self.controller_port}",
            "log.dirs": "data",
            **self._properties,
        }
        return "".join(f"{name}={value}\n" for name, value in properties.items())

    def _format(self) -> None:
        logs = self.data / "data"
        if (logs / "meta.properties").exists():
            return
        shutil.rmtree(logs, ignore_errors=True)  # An earlier formatting was cut off.
        # A leading hyphen would be taken for an option.
        cluster = base64.urlsafe_b64encode(b"A" + uuid.uuid4().bytes[1:]).rstrip(b"=").decode()
        run_tool(
            [*self._command, "kafka.tools.StorageTool", "format", "-t", cluster,
             "-c", "server.properties"],
            what="formatting Kafka's folder", cwd=self.data, env=_environment(),
        )  # fmt: skip

    async def _is_ready(self, patience: Patience) -> bool:
        """True once it answers as an unfenced broker, false if it ended or no time is left."""
        if not await patience.until(
            lambda: accepts(self.port) or self.exit_status() is not None, "does not listen yet"
        ):
            return False
        while self.exit_status() is None and patience.left_seconds:
            if await self._answers(min(ANSWER_SECONDS_MAX, patience.left_seconds)):
                return True
            patience.remark("listens, but is no broker that takes work yet")
            await asyncio.sleep(0.05)
        return False

    async def _answers(self, seconds_max: float) -> bool:
        """Whether the broker lists itself: a fenced one does not."""
        from aiokafka.admin import AIOKafkaAdminClient  # Slow to import.
        from aiokafka.errors import KafkaError

        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=int(seconds_max * 1_000) + 1)
        try:
            async with asyncio.timeout(seconds_max):
                await admin.start()
                return bool((await admin.describe_cluster())["brokers"])
        except (KafkaError, OSError, IndexError, TimeoutError):
            return False
        finally:
            await admin.close()


def _environment() -> dict[str, str]:
    """Ours, in a locale in which Java can name every file."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}
