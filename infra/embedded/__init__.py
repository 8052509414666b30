"""Postgres and Kafka as child processes on one data folder: for `ap up`, for tests, for benchmarks."""

from infra.embedded.failures import StackError
from infra.embedded.stack import EmbeddedStack

# `async with embedded_stack(folder) as stack:`
embedded_stack = EmbeddedStack

__all__ = ["EmbeddedStack", "StackError", "embedded_stack"]
