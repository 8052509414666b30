"""The embedded servers: durable across kill -9, owned by one process, gone with it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from infra.local.embedded import EmbeddedStack, StackError
from infra.local.embedded.processes import identify, is_alive
from infra.local.embedded.state import State, read_state
from tests.live import until

pytestmark = [pytest.mark.services, pytest.mark.platforms]

OWNER = """
import asyncio, sys
from pathlib import Path
from infra.local.embedded import EmbeddedStack

async def main():
    async with EmbeddedStack(Path(sys.argv[1]), with_kafka=sys.argv[2] == "kafka"):
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def topic(services: EmbeddedStack) -> AsyncIterator[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=services.kafka_bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic("embedded-test", 1, 1)])
        yield "embedded-test"
        await admin.delete_topics(["embedded-test"])
    finally:
        await admin.close()


async def test_what_kafka_acknowledged_survives_kill_9(services: EmbeddedStack, topic: str) -> None:
    await produce(services, topic, b"before")
    port = services.kafka.port
    await services.kafka.kill()
    await services.kafka.start()
    assert services.kafka.port == port
    await produce(services, topic, b"after")
    assert await consume(services, topic, 2) == [b"before", b"after"]


async def test_what_postgres_committed_survives_a_power_cut(services: EmbeddedStack) -> None:
    url = await services.new_database("embedded_test")
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE kept (x int); INSERT INTO kept VALUES (42)")
    await services.postgres.stop(immediate=True)
    await services.postgres.start()
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT x FROM kept") == 42
    await connection.close()


async def test_the_extensions_and_settings_that_the_platform_needs_are_there(services: EmbeddedStack) -> None:
    connection = await asyncpg.connect(services.database_url)
    try:
        for extension in ("vector", "pg_trgm", "btree_gin"):
            await connection.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}")
        assert await connection.fetchval("SHOW fsync") == "on"
        assert await connection.fetchval("SHOW synchronous_commit") == "on"
        assert await connection.fetchval("SHOW listen_addresses") == "127.0.0.1"
        assert await connection.fetchval("SHOW server_encoding") == "UTF8"
    finally:
        await connection.close()


async def test_nobody_gets_in_without_the_password(services: EmbeddedStack) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(services.database_url.replace("://agent_platform:", "://agent_platform:not"))


async def test_a_second_owner_is_refused_by_name(services: EmbeddedStack) -> None:
    owner = services.folder.state.owner.pid
    with pytest.raises(StackError, match=f"in use by process {owner}"):
        await EmbeddedStack(services.folder.path).start()
    assert services.postgres.exit_status() is None


async def test_kill_9_of_the_owner_leaves_nothing_behind(tmp_path: Path) -> None:
    owner = start_owner(tmp_path, "kafka")
    state = state_of(tmp_path)
    assert {process.role for process in state.processes} == {"postgres", "kafka"}
    owner.kill()
    owner.wait()
    assert await gone(state), "the guard stops what the owner started"


async def test_leftovers_of_an_owner_and_its_guard_are_stopped_by_the_next(tmp_path: Path) -> None:
    owner = start_owner(tmp_path, "no kafka")
    state = state_of(tmp_path)
    guards = [
        child for child in psutil.Process(owner.pid).children() if "infra.local.embedded.guard" in child.cmdline()
    ]
    assert len(guards) == 1
    guards[0].kill()
    owner.kill()
    owner.wait()
    assert all(is_alive(process.identity) for process in state.processes), "orphans run on"
    async with EmbeddedStack(tmp_path, with_kafka=False) as stack:
        assert await gone(state)
        assert await answers(stack)


async def test_sigterm_of_the_owner_is_no_different(tmp_path: Path) -> None:
    owner = start_owner(tmp_path, "no kafka")
    state = state_of(tmp_path)
    owner.send_signal(signal.SIGTERM)
    owner.wait()
    assert await gone(state)


async def test_a_port_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    async with EmbeddedStack(tmp_path, with_kafka=False) as stack:
        former = stack.postgres.port
    with socket.create_server(("127.0.0.1", former)):
        async with EmbeddedStack(tmp_path, with_kafka=False) as stack:
            assert stack.postgres.port != former
            assert await answers(stack)
            remembered = stack.postgres.port
    async with EmbeddedStack(tmp_path, with_kafka=False) as stack:
        assert stack.postgres.port == remembered


async def test_a_pid_file_whose_pid_is_somebody_elses_does_not_block(tmp_path: Path) -> None:
    async with EmbeddedStack(tmp_path, with_kafka=False) as stack:
        pid_file = stack.postgres.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        await stack.postgres.kill()
    stranger = os.getpid()
    pid_file.write_text("\n".join([str(stranger), *lines[1:]]) + "\n")
    async with EmbeddedStack(tmp_path, with_kafka=False) as stack:
        assert await answers(stack)


async def test_an_initialisation_that_was_cut_off_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "base").mkdir(parents=True)
    async with EmbeddedStack(tmp_path, with_kafka=False) as stack:
        assert await answers(stack)


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    async with EmbeddedStack(tmp_path, with_kafka=False):
        pass
    (tmp_path / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(StackError, match=r"Postgres did not start .*FATAL.*"):
        await EmbeddedStack(tmp_path, with_kafka=False).start()
    assert read_state(tmp_path) is None


def start_owner(data: Path, kafka: str) -> subprocess.Popen[bytes]:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(data), kafka], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    return owner


def state_of(data: Path) -> State:
    state = read_state(data)
    assert state is not None
    return state


async def gone(state: State) -> bool:
    async def look() -> bool:
        return not any(is_alive(process.identity) for process in state.processes)

    return await until(look)


async def answers(stack: EmbeddedStack) -> bool:
    connection = await asyncpg.connect(stack.database_url)
    try:
        assert stack.postgres.child is not None
        assert identify(stack.postgres.child.pid) is not None
        return bool(await connection.fetchval("SELECT true"))
    finally:
        await connection.close()


async def produce(services: EmbeddedStack, topic: str, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=services.kafka_bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def consume(services: EmbeddedStack, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=services.kafka_bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.seek_to_beginning()
        return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()
