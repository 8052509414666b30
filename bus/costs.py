"""What commands cost: how many rows those of a type wrote lately, so that no transaction becomes a giant."""

from __future__ import annotations

from collections.abc import Iterable

from bus.dead_letters import text
from bus.store import Incoming


class Costs:
    """Rows per command, by type: a rise counts at once, a fall slowly."""

    def __init__(self) -> None:
        self._rows: dict[str, float] = {}

    def learn(self, type: str, rows: int) -> None:
        known = self._rows.get(type, 1.0)
        if rows != known:
            self._rows[type] = max(known * 0.9 + rows * 0.1, 1.0) if rows < known else float(rows)

    def split(self, batch: list[Incoming], rows_max: int) -> Iterable[list[Incoming]]:
        """The batch in parts each of which writes about `rows_max` rows at most, if its commands do as lately."""
        if len(batch) * max(self._rows.values(), default=1.0) <= rows_max:
            yield batch
            return
        start, rows = 0, 0.0
        for index, record in enumerate(batch):
            rows += self._rows.get(_type_of(record), 1.0)
            if rows > rows_max and index > start:
                yield batch[start:index]
                start, rows = index, 0.0
        if start < len(batch):
            yield batch[start:]


def _type_of(record: Incoming) -> str:
    if record.decoded is not None:
        return record.decoded[1].type
    return text(next((value for name, value in record.headers if name == "ce_type"), b""))[:64]
