"""What can be measured and against whom: names only, so that help is quick."""

from __future__ import annotations

from collections.abc import Mapping

from infra.bench.peers import PEERS

WORKLOADS: Mapping[str, str] = {
    "chain-10": "ten durable no-op steps a run: many runs in flight, few, and one alone; on every system",
    "pure-10": "ten template nodes a run",
    "http": "make an app by the gateway, from request to outcome",
    "reads": "read a run by its id from one gateway",
    "length": "cost of a step in short and in long runs",
    "stored": "cost of a step with nothing and with very much stored",
    "rebuild": "events folded anew by one process",
    "backlog": "very many runs queued before a worker starts: rate and memory at the begin and at the end",
    "noisy": "latency of a quiet tenant's runs, alone and beside a tenant with very many runs queued",
    "memory": "memory of a worker with many runs in flight",
    "workers": "one worker process and two",
    "take-over": "a new worker's first record, after a start and after a kill -9",
}

__all__ = ["PEERS", "WORKLOADS"]
