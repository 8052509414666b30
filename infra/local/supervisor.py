"""`ap up`: starts the servers and the roles, keeps them running, stops them in order."""

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Literal

from infra.local.embedded import EmbeddedStack, StackError
from infra.local.embedded.jars import Progress
from infra.local.embedded.processes import KILL, LOOPBACK, STOP_GENTLY, free_port, log_tail, port_is_free
from infra.local.embedded.processes import Say as Say
from infra.local.embedded.state import (
    Scaled,
    Wish,
    in_use,
    read_state,
    read_wish,
    write_wish,
)
from infra.local.keeping import Keeper, how
from infra.local.role_process import RoleName as RoleName
from infra.local.role_process import RoleProcess, Server, Unit
from infra.settings import Settings, mask_password, setting_name

ServerName = Literal["postgres", "kafka"]

HEALTHY_SECONDS = 30.0
READY_SECONDS_MAX = 120.0
EARLY_DEATHS_MAX = 3
WISH_SECONDS = 0.2
"""How often the supervisor looks whether somebody wants other numbers of processes."""
LEAVE: Sequence[tuple[int, float]] = ((signal.SIGTERM, 45.0), (signal.SIGKILL, 5.0))
"""A process that leaves for good may end its steps first, and hands its lanes over in order."""
SCALABLE: Sequence[RoleName] = ("worker", "executor")
COUNT_DEFAULT = 1


class Supervisor:
    """Runs a whole stack in the foreground; `run` returns once everything has stopped.

    `workers` and `executors` None: as many as last time on this data folder. `role_module` is what a role process
    runs, its role the only argument. What lived for `healthy_seconds` is started again at once when it ends.
    `fronts`: ports of this machine at which roles find a server, by its name, instead of at its own; whoever listens
    there passes everything on to `port_of` it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        workers: int | None,
        executors: int | None,
        say: Say,
        progress: Progress | None = None,
        role_module: str = "infra.cli",
        healthy_seconds: float = HEALTHY_SECONDS,
        fronts: Mapping[ServerName, int] | None = None,
    ) -> None:
        self._settings = settings
        wish = read_wish(settings.data_dir)
        self._counts: dict[RoleName, int] = {
            "worker": wish.counts.get("worker", COUNT_DEFAULT) if workers is None else workers,
            "executor": wish.counts.get("executor", COUNT_DEFAULT) if executors is None else executors,
            "gateway": 1,
        }
        self._wish = wish
        self._say = say
        self._role_module = role_module
        self._healthy_seconds = healthy_seconds
        self._fronts = dict(fronts or {})
        self._stack = EmbeddedStack(
            settings.data_dir,
            with_postgres=settings.database_url is None,
            with_kafka=settings.kafka_bootstrap is None,
            full_jit=True,
            heap_megabytes=settings.embedded_kafka_heap_megabytes,
            kafka_properties=_advertised(self._fronts.get("kafka")),
            cache_dir=settings.cache_dir,
            progress=progress,
            waiting=say,
        )
        self._roles: list[RoleProcess] = []
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._environment: Mapping[str, str] = {}
        self._asked_to_stop = asyncio.Event()
        self._in_a_hurry = False

    async def run(self, once_ready: Callable[[str], Awaitable[None]] | None = None) -> None:
        """Start, stay until a signal comes, stop. Raises StackError.

        With `once_ready`: call it with the gateway's address and stop when it is done.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self._unless_stopped(self._start())
            if once_ready is not None and not self._asked_to_stop.is_set():
                await self._unless_stopped(once_ready(self.gateway_url))
            elif not self._asked_to_stop.is_set():
                await self._unless_stopped(self._follow_wishes())
        finally:
            await self._stop()

    @property
    def settings(self) -> Settings:
        """As the roles have them: with the addresses of the servers once these run."""
        return self._settings

    @property
    def gateway_url(self) -> str:
        host = self._settings.gateway_host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._settings.gateway_port}"

    def pid_of(self, role: RoleName) -> int:
        """The process of the first worker, executor or gateway."""
        return next(p.identity.pid for p in self._stack.folder.state.processes if p.role == role)

    def port_of(self, server: ServerName) -> int:
        """The port of an embedded server; 0 before it has one."""
        return self._stack.postgres.port if server == "postgres" else self._stack.kafka.port

    async def add(self, role: RoleName, changes: Mapping[str, str] | None = None) -> str:
        """Start one more process of a role and keep it running; says its name. `changes`: to its environment."""
        taken = {process.index for process in self._roles if process.role == role}
        index = next(index for index in range(len(taken) + 1) if index not in taken)
        process = self._role(role, index)
        process.environment = {**process.environment, **(changes or {})}
        self._roles.append(process)
        keeper = self._keeper(process)
        await keeper.start()
        self._keepers[process.name] = asyncio.create_task(keeper.run())
        return process.name

    async def remove(self, name: str, how: Sequence[tuple[int, float]] = STOP_GENTLY) -> None:
        """Stop one process for good."""
        await self._leave(name, how)

    async def _leave(self, name: str, how: Sequence[tuple[int, float]]) -> int:
        """Stop one process for good; its exit code, negative if a signal ended it."""
        process = next(process for process in self._roles if process.name == name)
        keeper = self._keepers.pop(name)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await process.stop(how)
        self._roles.remove(process)
        self._stack.folder.forget_process(process.role, process.index)
        return process.exit_status() or 0

    async def scale(self, counts: Mapping[RoleName, int], request: str = "") -> Scaled:
        """Start or stop processes until there are so many of each role; those named last leave first."""
        started: list[str] = []
        leaving: list[str] = []
        for role, count in counts.items():
            names = [process.name for process in sorted(self._roles, key=lambda p: p.index) if process.role == role]
            leaving += names[count:]
            started += [await self.add(role) for _ in range(count - len(names))]
        codes = await asyncio.gather(*(self._leave(name, LEAVE) for name in leaving))
        done = Scaled(request, tuple(started), dict(zip(leaving, codes, strict=True)))
        self._counts.update(counts)
        self._stack.folder.record(scaled=done)
        return done

    async def _follow_wishes(self) -> None:
        """Scale whenever somebody has written another wish into the data folder; where that fails, try once more."""
        failed = ""
        while True:
            await asyncio.sleep(WISH_SECONDS)
            try:
                wish = await asyncio.to_thread(read_wish, self._stack.folder.path)
                if wish.request and wish.request != self._wish.request:
                    await self._fulfil(wish)
                failed = ""
            except (OSError, StackError, RuntimeError) as error:  # No space, descriptor, thread: that passes.
                if str(error) != failed:
                    failed = str(error)
                    self._say(f"cannot scale yet: {failed}")

    async def _fulfil(self, wish: Wish) -> None:
        counts: dict[RoleName, int] = {role: wish.counts[role] for role in SCALABLE if role in wish.counts}
        counts["gateway"] = 1
        done = await self.scale(dict.fromkeys(counts, 0) if wish.paused else counts, wish.request)
        self._wish = wish
        changes = [f"started {name}" for name in done.started]
        changes += [f"stopped {name} ({how(code)})" for name, code in done.stopped.items()]
        self._say(f"Scaled: {', '.join(changes) or 'nothing to do'}")

    def _role(self, role: RoleName, index: int) -> RoleProcess:
        process = RoleProcess(role, index, self._stack.folder, self._environment, self._role_module)
        process.metrics_port = self._metrics_port()
        return process

    def _metrics_port(self) -> int:
        """One for each process: any free one, or the next free one from the port that the settings name."""
        taken = {process.metrics_port for process in self._roles} | {self._settings.gateway_port}
        first = self._settings.metrics_port
        if not first:
            return free_port(taken)
        return next(port for port in range(first, 65_536) if port not in taken and port_is_free(port))

    async def _unless_stopped(self, work: Awaitable[None]) -> None:
        """Await the work, or leave it as soon as somebody asks to stop."""
        task = asyncio.ensure_future(work)
        asked = asyncio.create_task(self._asked_to_stop.wait())
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return
        task.result()

    async def _start(self) -> None:
        self._take_gateway_port()
        importing = asyncio.create_task(asyncio.to_thread(_import_prepare))
        try:
            await self._stack.start()
        except BaseException:
            importing.cancel()
            raise
        prepare = await importing
        self._settings = self._settings.model_copy(update=self._addresses())
        try:
            await prepare.migrate(self._settings)
        except prepare.database.SchemaRefused as refused:
            raise StackError(f"{self._stack.folder.path}: {refused}") from None
        await prepare.create_topics(self._settings)
        self._settings = await prepare.topics.as_recorded(self._settings)
        folder = self._stack.folder
        folder.remember_ports(folder.remembered_ports() | {"gateway": self._settings.gateway_port})
        folder.record(
            gateway_url=self.gateway_url,
            database_url=self._settings.database_url,
            kafka_bootstrap=self._settings.kafka_bootstrap,
        )
        self._wish = Wish({role: self._counts[role] for role in SCALABLE}, self._wish.request)
        write_wish(folder.path, self._wish)
        self._environment = self._role_environment()
        for role, count in self._counts.items():
            for index in range(count):
                self._roles.append(self._role(role, index))
        for process in self._roles:
            await process.start()
        self._keepers = {unit.name: asyncio.create_task(self._keeper(unit).run()) for unit in self._units()}
        await self._until_ready()
        folder.record(scaled=Scaled(self._wish.request))
        self._announce()

    def _take_gateway_port(self) -> None:
        """The one that was asked for; else that of last time, else the setting's default."""
        settings = self._settings
        remembered = self._stack.folder.remembered_ports().get("gateway", 0)
        if settings.gateway_port == 0:
            usable = remembered and port_is_free(remembered, settings.gateway_host)
            self._settings = settings.model_copy(update={"gateway_port": remembered if usable else free_port()})
            return
        if "gateway_port" not in settings.model_fields_set and remembered:
            settings = self._settings = settings.model_copy(update={"gateway_port": remembered})
        if not port_is_free(settings.gateway_port, settings.gateway_host):
            running = read_state(self._stack.folder.path)
            if running is not None and running.is_running:
                raise in_use(self._stack.folder.path, str(running.owner.pid))
            raise StackError(
                f"port {settings.gateway_port} on {settings.gateway_host} is in use",
                "choose another one with --port",
            )

    def _addresses(self) -> dict[str, Any]:
        stack, settings = self._stack, self._settings
        return {
            "data_dir": stack.folder.path,
            "database_url": settings.database_url or stack.database_url,
            "kafka_bootstrap": settings.kafka_bootstrap or stack.kafka_bootstrap,
        }

    def _as_roles_see_it(self) -> Settings:
        found = {}
        if "postgres" in self._fronts:
            own, front = f":{self.port_of('postgres')}/", f":{self._fronts['postgres']}/"
            found["database_url"] = self._settings.required_database_url.replace(own, front)
        if "kafka" in self._fronts:
            found["kafka_bootstrap"] = f"{LOOPBACK}:{self._fronts['kafka']}"
        return self._settings.model_copy(update=found)

    def _role_environment(self) -> dict[str, str]:
        """Ours, and as variables what was decided here or came from the command line."""
        settings = self._as_roles_see_it()
        given = {
            setting_name(name): str(getattr(settings, name))
            for name in ("database_url", "kafka_bootstrap", "gateway_host", "gateway_port", "data_dir", "lease_seconds")
        }
        token = self._settings.bootstrap_token
        if self._settings.auth_required and token is None:
            made = secrets.token_urlsafe(24)
            given[setting_name("bootstrap_token")] = made
            self._say(f"Bootstrap token, for the first API key: {made}")
        return {**os.environ, **given}

    def _units(self) -> list[Unit]:
        units: list[Unit] = list(self._roles)
        if self._stack.postgres.child is not None:
            units.append(Server("postgres", self._stack.postgres.start, self._stack.postgres.exit_status))
        if self._stack.kafka.child is not None:
            units.append(Server("kafka", self._stack.kafka.start, self._stack.kafka.exit_status))
        return units

    def _keeper(self, unit: Unit) -> Keeper:
        note = self._stack.folder.record_waiting
        return Keeper(unit, say=self._say, note=note, healthy_seconds=self._healthy_seconds)

    async def _until_ready(self) -> None:
        until = monotonic() + READY_SECONDS_MAX
        while not await answers_ready(self._settings.gateway_host, self._settings.gateway_port):
            for role in self._roles:
                if role.deaths >= EARLY_DEATHS_MAX:
                    raise StackError(
                        f"{role.name} keeps ending ({log_tail(role.log, ('Error', 'error'))})",
                        f"see {role.log}",
                    )
            if monotonic() > until:
                raise StackError(
                    f"the gateway was not ready within {READY_SECONDS_MAX:g} seconds",
                    f"see {self._stack.folder.path}/log",
                )
            await asyncio.sleep(0.05)

    def _announce(self) -> None:
        settings, folder = self._settings, self._stack.folder
        roles = ", ".join(f"{p.role} {p.identity.pid}" for p in folder.state.processes)
        reference = "" if settings.auth_required else f" (reference: {self.gateway_url}/docs)"
        for name, value in (
            ("Gateway", f"{self.gateway_url}/gateway" + reference),
            ("Postgres", mask_password(settings.required_database_url)),
            ("Kafka", settings.required_kafka_bootstrap),
            ("Processes", roles),
            ("Data, logs", str(folder.path)),
        ):
            self._say(f"{name:<11}{value}")
        self._say("Ctrl-C stops everything; `ap status` shows it.")

    def _on_signal(self) -> None:
        if not self._asked_to_stop.is_set():
            self._asked_to_stop.set()
            self._say("Stopping ...")
            return
        self._in_a_hurry = True
        for role in self._roles:
            if role.child is not None and role.child.poll() is None:
                role.child.kill()

    async def _stop(self) -> None:
        """Stop the roles that take new work first, then those that do it, then the servers."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        for names in (("gateway",), ("worker", "executor")):
            how = KILL if self._in_a_hurry else STOP_GENTLY
            await asyncio.gather(*(role.stop(how) for role in self._roles if role.role in names))
        await self._stack.stop()


async def answers_ready(host: str, port: int) -> bool:
    """Whether GET /ready is answered with 200."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                status_line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status_line.split()[1:2] == [b"200"]


def _advertised(port: int | None) -> dict[str, str]:
    """What Kafka tells its clients: the address to come back to."""
    return {} if port is None else {"advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}"}


def _import_prepare() -> Any:
    """Schema and topics: slow to import, so while the servers start."""
    import infra.roles.prepare

    return infra.roles.prepare
