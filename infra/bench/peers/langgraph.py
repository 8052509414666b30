"""LangGraph with its Postgres checkpointer: a graph of nodes in a chain, a checkpoint after each.

Settings: durability `sync`, so that a node starts only when the checkpoint before it is written. A checkpointer
holds one lock whatever pool it is given, so there are several, each with a connection of its own, in turns.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from itertools import cycle, pairwise
from typing import Any, TypedDict

import asyncpg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph

from infra.bench.peers.process import Workload

CHECKPOINTERS = 8


class State(TypedDict):
    x: int
    ok: bool


async def step(state: State) -> dict[str, bool]:
    return {"ok": True}


async def run(workload: Workload) -> None:
    async with _graphs(workload) as graphs:
        turn = cycle(graphs)

        async def one() -> None:
            config = {"configurable": {"thread_id": str(uuid.uuid4())}}
            result = await next(turn).ainvoke({"x": 1, "ok": False}, config, durability="sync")
            if result != {"x": 1, "ok": True}:
                raise RuntimeError("the graph gave something else than its last node")

        await workload.drive(one)
    await _check(workload)


@contextlib.asynccontextmanager
async def _graphs(workload: Workload) -> AsyncIterator[list[Any]]:
    async with contextlib.AsyncExitStack() as stack:
        graphs: list[Any] = []
        for _ in range(CHECKPOINTERS):
            saver = await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(workload.database_url))
            if not graphs:
                await saver.setup()
            graphs.append(_chain(workload.nodes).compile(checkpointer=saver))
        yield graphs


def _chain(nodes: int) -> StateGraph[State, None, State, State]:
    graph = StateGraph(State)
    names = [f"n{number}" for number in range(nodes)]
    for name in names:
        graph.add_node(name, step)
    for before, after in pairwise([START, *names, END]):
        graph.add_edge(before, after)
    return graph


async def _check(workload: Workload) -> None:
    """Every thread has a checkpoint of its input, one before its first node, and one after each node."""
    connection = await asyncpg.connect(workload.database_url)
    try:
        threads = await connection.fetchval("SELECT count(DISTINCT thread_id) FROM checkpoints")
        checkpoints = await connection.fetchval("SELECT count(*) FROM checkpoints")
    finally:
        await connection.close()
    workload.check(threads, checkpoints - 2 * threads)
