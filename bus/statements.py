"""The statement that writes a batch: one text for each combination of tables, with a column array per parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any

import orjson

from bus.store import Advance, DeadLetter, Logged, Out, Outcome, Timer, Writes
from infra.db import Column, TableSpec

_ADVANCE = """a AS (
  SELECT * FROM unnest($1::int2[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::int8[])
    AS a(lane, epoch, expected, next, position, sent, floor)
), fence AS (
  UPDATE lane l SET next_offset = a.next, position = a.position, sent = greatest(l.sent, a.sent),
    floor = a.floor
  FROM a WHERE l.id = a.lane AND l.epoch = a.epoch AND l.next_offset = a.expected
  RETURNING l.id
)"""
_TRIM = ", trim AS (DELETE FROM outbox o USING a WHERE o.lane = a.lane AND o.position <= a.sent)"
_CHECK = "SELECT ap_fence($1::int2[], ARRAY(SELECT id FROM fence))"
PATIENCE_BATCHES = 8
"""So often in a row a column must have had one value before it counts as constant; twice as often after each error."""

Arrays = Sequence[Sequence[Any]]
Dump = Callable[[Any], Any]
Columns = Sequence[tuple[str, str, Dump | None]]
"""Names and types, as Postgres calls them, and what makes a value one of that type; None: it is one already."""


class _Part:
    """One insert or update of a statement.

    `sql(values, source)` is its text, from an expression for each column by name, and the rows. `arrays(rows)`: the
    values by column. A column that has one and the same value in all rows, batch after batch (a tenant, a status,
    null), is one parameter and no array: that halves what a batch has to encode.
    """

    def __init__(
        self,
        sql: Callable[[Mapping[str, str], str], str],
        columns: Columns,
        arrays: Callable[[Any], Arrays],
    ) -> None:
        self._sql = sql
        self._columns = columns
        self._arrays = arrays
        self._streaks = [0] * len(columns)
        self._patience = [PATIENCE_BATCHES] * len(columns)

    def laid_out(self, rows: Any) -> tuple[int, list[Any]]:
        """The variant for these rows, bit n for column n if that is one parameter, and the parameters."""
        variant, parameters = 0, []
        for index, ((_, _, dump), values) in enumerate(zip(self._columns, self._arrays(rows), strict=True)):
            if dump is not None and values[0] is not None:  # Compared as they are stored: 1 and true are equal in JSON.
                values = [dump(value) for value in values]
                dump = None
            if index and self._constant(index, values):
                variant |= 1 << index
                parameters.append(values[0])
            else:
                parameters.append(values if dump is None else [dump(value) for value in values])
        return variant, parameters

    def _constant(self, index: int, array: Sequence[Any]) -> bool:
        """Whether a column is taken for constant, and is. Each change of mind is a statement to be planned anew."""
        settled = self._streaks[index] >= self._patience[index]
        if len(array) == 1:
            return settled  # Says nothing about the column.
        first = array[0]
        if first == array[-1] and array.count(first) == len(array):
            self._streaks[index] += 1
            return settled
        self._streaks[index] = 0
        if settled:
            self._patience[index] *= 2
        return False

    def at(self, first: int, variant: int) -> str:
        """The text of a variant, with its parameters numbered from `first` on."""
        values: dict[str, str] = {}
        arrays: list[str] = []
        names: list[str] = []
        for index, (name, type, _) in enumerate(self._columns):
            if variant >> index & 1:
                values[name] = f"${first + index}::{type}"
            else:
                arrays.append(f"${first + index}::{type}[]")
                names.append(f'"{name}"')
                values[name] = f'u."{name}"'
        return self._sql(values, f"unnest({', '.join(arrays)}) AS u({', '.join(names)})")


def _insert(name: str, table: str, columns: Columns, arrays: Callable[[Any], Arrays]) -> _Part:
    """Insert rows."""
    into = ", ".join(f'"{column}"' for column, _, _ in columns)

    def sql(values: Mapping[str, str], source: str) -> str:
        return f", {name} AS (INSERT INTO {table} ({into}) SELECT {', '.join(values.values())} FROM {source})"

    return _Part(sql, columns, arrays)


def _update(name: str, table: str, columns: Columns, arrays: Callable[[Any], Arrays]) -> _Part:
    """Update rows by the first column."""
    (key, _, _), *mutable = columns

    def sql(values: Mapping[str, str], source: str) -> str:
        changes = ", ".join(f'"{column}" = {values[column]}' for column, _, _ in mutable)
        return f', {name} AS (UPDATE {table} t SET {changes} FROM {source} WHERE t."{key}" = u."{key}")'

    return _Part(sql, columns, arrays)


def _row_columns(columns: Sequence[Column]) -> Columns:
    return [(column.name, column.pg_type, column.dump) for column in columns]


def _row_arrays(columns: Sequence[Column]) -> Callable[[Any], Arrays]:
    values = itemgetter(*(column.name for column in columns))

    def arrays(rows: list[Any]) -> Arrays:
        rows.sort(key=_row_id)
        return list(zip(*[values(row.__dict__) for row in rows], strict=True))

    return arrays


_row_id = attrgetter("id")


def _columns(text: str) -> Columns:
    """From "name type, name type"."""
    pairs = [part.split() for part in text.split(",")]
    return [(name, type, None) for name, type in pairs]


def _event_arrays(events: list[Logged]) -> Arrays:
    positions, recorded, bodies = zip(*events, strict=True)
    made, ids, seqs, at, tenants, lanes, actors, correlations, causes, traces = zip(*recorded, strict=True)
    types = [event.type for event in made]
    return [ids, seqs, lanes, positions, types, tenants, at, actors, correlations, causes, traces, bodies]


def _out_arrays(outs: Sequence[Out]) -> Arrays:
    return [
        [out.position for out in outs],
        [out.lane for out in outs],
        [out.topic for out in outs],
        [out.partition for out in outs],
        [out.key for out in outs],
        [dump_headers(out.headers) for out in outs],
        [out.body for out in outs],
        [out.tenant_id for out in outs],
    ]


def dump_headers(headers: Sequence[tuple[str, bytes]]) -> bytes:
    """Headers of ours as JSON: their values are always UTF-8."""
    return orjson.dumps([(name, value.decode()) for name, value in headers])


def load_headers(stored: bytes) -> list[tuple[str, bytes]]:
    return [(name, value.encode()) for name, value in orjson.loads(stored)]


def _timer_arrays(timers: list[Timer]) -> Arrays:
    return [
        [timer.id for timer in timers],
        [timer.out.lane for timer in timers],
        [timer.seconds for timer in timers],
        [timer.out.partition for timer in timers],
        [timer.out.key for timer in timers],
        [dump_headers(timer.out.headers) for timer in timers],
        [timer.out.body for timer in timers],
        [timer.out.tenant_id for timer in timers],
    ]


def tuple_arrays(rows: Sequence[tuple[Any, ...]]) -> Arrays:
    return list(zip(*rows, strict=True))


def _outcome_arrays(outcomes: list[Outcome]) -> Arrays:
    return tuple_arrays([(o.command_id, o.status, o.body, o.at, o.deferred) for o in outcomes])


def _new_outcome_arrays(outcomes: list[Outcome]) -> Arrays:
    return tuple_arrays(
        sorted(
            (o.command_id, o.tenant_id, o.type, o.fingerprint, o.status, o.body, o.at, o.reply_partition, o.deferred)
            for o in outcomes
        )
    )


_OUT = "topic text, partition int2, key text, headers bytea, body bytea, tenant_id text"
_DEAD = _columns(
    "id uuid, tenant_id text, topic text, partition int2, offset int8, type text, key text, message_id text,"
    " code text, detail text, headers bytea, body bytea, body_bytes int4, body_sha256 text, at float8"
)


def _dead_letter_arrays(letters: list[DeadLetter]) -> Arrays:
    return [[getattr(letter, name) for letter in letters] for name, _, _ in _DEAD]


def _timer_sql(values: Mapping[str, str], source: str) -> str:
    into = ", ".join(name for name in values if name != "seconds")
    given = ", ".join(value for name, value in values.items() if name != "seconds")
    return (
        f", timers AS (INSERT INTO timer ({into}, due_at)"
        f" SELECT {given}, clock_timestamp() + make_interval(secs => {values['seconds']}) FROM {source}"
        " ON CONFLICT (id) DO NOTHING)"
    )


def _ended_timers_sql(values: Mapping[str, str], source: str) -> str:
    return f", ended_timers AS (DELETE FROM timer t USING {source} WHERE t.id = {values['id']})"


def _ended_timers_arrays(ids: list[str]) -> Arrays:
    return [sorted(ids)]


def _dead_letter_sql(values: Mapping[str, str], source: str) -> str:
    into = ", ".join(f'"{name}"' for name in values)
    return (
        f", letters AS (INSERT INTO dead_letter ({into}, status, redrives)"
        f" SELECT {', '.join(values.values())}, 'dead', 0 FROM {source}"
        " ON CONFLICT (id) DO UPDATE SET status = 'dead', at = EXCLUDED.at, redrives = dead_letter.redrives + 1)"
    )


class Statements:
    """The statement for every combination of tables that a batch writes; each text is made once."""

    def __init__(self, specs: Mapping[str, TableSpec]) -> None:
        self._inserts = {
            name: _insert(f"i_{name}", name, _row_columns(spec.columns), _row_arrays(spec.columns))
            for name, spec in specs.items()
        }
        self._updates = {}
        for name, spec in specs.items():
            columns = (spec.columns[0], *spec.mutable)
            self._updates[name] = _update(f"u_{name}", name, _row_columns(columns), _row_arrays(columns))
        self._events = _insert(
            "events",
            "event",
            _columns(
                "aggregate_id uuid, seq int4, lane int2, position int8, type text, tenant_id text, at float8,"
                " actor text, correlation_id text, causation_id text, traceparent text, data bytea"
            ),
            _event_arrays,
        )
        self._outbox = _insert("outs", "outbox", _columns(f"position int8, lane int2, {_OUT}"), _out_arrays)
        self._timers = _Part(
            _timer_sql,
            _columns("id uuid, lane int2, seconds float8, " + _OUT.removeprefix("topic text, ")),
            _timer_arrays,
        )
        self._ended_timers = _Part(_ended_timers_sql, _columns("id uuid"), _ended_timers_arrays)
        self._inbox = _insert(
            "inbox_rows",
            "inbox",
            _columns("message_id uuid, redrive int2, at float8"),
            lambda rows: tuple_arrays(sorted(rows)),
        )
        self._new_outcomes = _insert(
            "new_outcomes",
            "command_outcome",
            _columns(
                "command_id uuid, tenant_id text, type text, fingerprint text, status text, body bytea,"
                " created_at float8, reply_partition int2, deferred bool"
            ),
            _new_outcome_arrays,
        )
        self._outcomes = _update(
            "outcomes",
            "command_outcome",
            _columns("command_id uuid, status text, body bytea, created_at float8, deferred bool"),
            _outcome_arrays,
        )
        self._dead_letters = _Part(_dead_letter_sql, _DEAD, _dead_letter_arrays)
        self._statements: dict[tuple[object, ...], str] = {}

    def of(self, writes: Writes) -> tuple[str, list[Any]]:
        """The one statement that fences and writes everything, and its arguments."""
        found: list[tuple[_Part, Any]] = [(self._inserts[name], rows) for name, rows in writes.inserts.items()]
        found += [(self._updates[name], rows) for name, rows in writes.updates.items()]
        found += [
            (self._events, writes.events),
            (self._outbox, writes.outbox),
            (self._timers, writes.timers),
            (self._ended_timers, writes.ended_timers),
            (self._inbox, writes.inbox),
            (self._new_outcomes, writes.new_outcomes),
            (self._outcomes, writes.outcomes),
            (self._dead_letters, writes.dead_letters),
        ]
        parts: list[tuple[_Part, int, int]] = []
        arguments = advance_arrays(writes.advances)
        for part, rows in found:
            if rows:
                first = len(arguments) + 1
                variant, arrays = part.laid_out(rows)
                arguments += arrays
                parts.append((part, first, variant))
        key = (writes.trim, *parts)
        sql = self._statements.get(key)
        if sql is None:
            sql = self._statements[key] = _assemble(parts, trim=writes.trim)
        return sql, arguments


def _assemble(parts: Sequence[tuple[_Part, int, int]], *, trim: bool) -> str:
    inner = "".join(part.at(first, variant) for part, first, variant in parts)
    return f"WITH {_ADVANCE}{_TRIM if trim else ''}{inner}\n{_CHECK}"


def advance_arrays(advances: Sequence[Advance]) -> list[Any]:
    ordered = sorted(advances, key=lambda advance: advance.lane)
    return [
        [a.lane for a in ordered],
        [a.epoch for a in ordered],
        [a.expected for a in ordered],
        [a.next for a in ordered],
        [a.position for a in ordered],
        [a.sent for a in ordered],
        [a.floor for a in ordered],
    ]
