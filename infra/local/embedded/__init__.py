"""Postgres and Kafka as child processes on one data folder: for `ap up`, for tests, for benchmarks."""

from infra.local.embedded.failures import StackError
from infra.local.embedded.stack import EmbeddedStack

# `async with embedded_stack(folder) as stack:`
embedded_stack = EmbeddedStack

__all__ = ["EmbeddedStack", "StackError", "embedded_stack"]
