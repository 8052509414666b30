"""Apache Kafka 4.4, one KRaft node that is broker and controller, on one data folder."""

import asyncio
import base64
import shutil
import signal
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from infra.local.embedded.failures import StackError
from infra.local.embedded.processes import (
    KILL,
    LOOPBACK,
    Note,
    accepts,
    log_tail,
    no_note,
    run_tool,
    spawn,
    stop_child,
    wait_until,
    write_atomically,
)

START_SECONDS_MAX = 60.0
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
        self._command: list[str] = []

    @property
    def bootstrap(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def prepare(self, java: Path, jars: list[Path], port: int, controller_port: int) -> None:
        """Write the configuration and format the folder once. Blocks for a second the first time."""
        self.port, self.controller_port = port, controller_port
        self.data.mkdir(parents=True, exist_ok=True)
        write_atomically(self.data / "server.properties", self._server_properties().encode())
        write_atomically(self.data / "log4j2.xml", LOGGING.encode())
        classpath = ":".join(str(jar) for jar in jars)
        jit = [] if self._full_jit else ["-XX:TieredStopAtLevel=1"]
        options = [
            f"-Xmx{self._heap_megabytes}m", "-XX:+UseSerialGC", *jit, "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true", f"-Dlog4j2.configurationFile={self.data / 'log4j2.xml'}",
            "-cp", classpath,
        ]  # fmt: skip
        quoted = ['"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"' for option in options]
        write_atomically(self.data / "java.args", "\n".join(quoted).encode())
        self._command = [str(java), f"@{self.data / 'java.args'}"]
        self._format()

    async def start(self) -> None:
        """Start and wait until it answers as an unfenced broker. Raises StackError."""
        command = [*self._command, "kafka.Kafka", str(self.data / "server.properties")]
        self.child = spawn(command, log=self.log, folder=self.data)
        self._note(self.child.pid)
        listening = await wait_until(lambda: accepts(self.port) or self.exit_status() is not None, START_SECONDS_MAX)
        if self.exit_status() is None and listening and await self._answers():
            return
        await self.stop()
        reason = log_tail(self.log, ("Exception", "ERROR", "FATAL", "Error"))
        raise StackError(f"Kafka did not start ({reason})", f"see {self.log}")

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
            "log.dirs": str(self.data / "data"),
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
             "-c", str(self.data / "server.properties")],
            what="formatting Kafka's folder",
        )  # fmt: skip

    async def _answers(self) -> bool:
        """True once the broker lists itself: a fenced one does not."""
        from aiokafka.admin import AIOKafkaAdminClient  # Slow to import.
        from aiokafka.errors import KafkaError

        for _ in range(600):
            if self.exit_status() is not None:
                return False
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=5000)
            try:
                await admin.start()
                if (await admin.describe_cluster())["brokers"]:
                    return True
            except (KafkaError, OSError, IndexError):
                pass
            finally:
                await admin.close()
            await asyncio.sleep(0.05)
        return False
