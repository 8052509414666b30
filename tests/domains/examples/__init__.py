"""What each domain brings to the suite: one file, named like the domain, with GIVEN and STEPS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.messages import Command


@dataclass(frozen=True)
class Internal:
    """A command that only the platform sends, to itself."""

    command: Command


@dataclass(frozen=True)
class Changed:
    """Operational columns of a row that somebody else has written: an executor that claimed a step."""

    table: str
    id: str
    fields: Mapping[str, Any]


Step = Command | Internal | Changed
