"""Tables, each declared once by its rows' dataclass, and the roles by which each part of the platform comes to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qs, unquote, urlsplit

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

metadata = sa.MetaData()

Part = Literal["worker", "gateway", "lookup"]
"""`worker` sees and changes every tenant's rows; `gateway` reads the rows of its transaction's tenant; `lookup` sees of
all tenants only ids and what is named for it."""
PARTS: tuple[Part, ...] = ("worker", "gateway", "lookup")
ROLE_BYTES_MAX = 63
"""Postgres cuts off what is longer."""

R = TypeVar("R")


def database_of(url: str) -> str:
    """The name of the database at an address, by the rules of the driver. Raises ValueError if it has none."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    named = (*query.get("database", ()), *query.get("dbname", ()))
    name = unquote(parts.path.removeprefix("/")) or next(iter(named), "") or os.environ.get("PGDATABASE", "")
    name = name or unquote(parts.username or "") or os.environ.get("PGUSER", "")
    if not name:
        raise ValueError("the address names no database")
    return name


def role_of(part: Part, database: str) -> str:
    """The role of a part in one database. Roles are the cluster's: another database there has its own."""
    name = f"ap_{part}_{database}"
    if len(name.encode()) <= ROLE_BYTES_MAX:
        return name
    digest = hashlib.sha256(database.encode()).hexdigest()[:16]
    room = ROLE_BYTES_MAX - len(f"ap_{part}_~{digest}")
    return f"ap_{part}_{database.encode()[:room].decode(errors='ignore')}~{digest}"


def session(url: str, part: Part = "worker", settings: Mapping[str, str] | None = None, **more: str) -> dict[str, str]:
    """Settings of a session of a part in the database at this address."""
    return {"role": role_of(part, database_of(url)), **(settings or {}), **more}


class Json(sa.types.TypeDecorator[Any]):
    """A JSON value kept as its UTF-8 text in `bytea`: written and read without a parse in Postgres."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> bytes | None:
        return None if value is None else orjson.dumps(value)

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> Any:
        return None if value is None else orjson.loads(value)


class Instant(sa.types.TypeDecorator[float]):
    """A moment in seconds since 1970 as the fold knows it; 0 is stored as null."""

    impl = sa.Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: sa.Dialect) -> float | None:
        return value or None

    def process_result_value(self, value: float | None, dialect: sa.Dialect) -> float:
        return value or 0.0


T = TypeVar("T")
_ONCE: Final = "written once"
_OPERATIONAL: Final = "operational"

Uuid = Annotated[str, UUID(as_uuid=False)]
Moment = Annotated[float, Instant]
"""Seconds since 1970; 0 for never."""
Small = Annotated[int, sa.SmallInteger]
Once = Annotated[T, _ONCE]
"""A column that no update writes."""
Operational = Annotated[T, _OPERATIONAL]
"""A column that is not folded from events (leases): left out when a rebuild is compared."""


def changed(row: R, **fields: Any) -> R:
    """`row` with other values in some fields: `dataclasses.replace` for rows without slots, 12x faster."""
    new = object.__new__(type(row))
    object.__setattr__(new, "__dict__", row.__dict__ | fields)
    return new


def instant(seconds: float) -> str | None:
    """A moment as people and JSON see it: RFC 3339 in UTC with microseconds; None for 0."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z") if seconds else None


def uuid_column(name: str, **options: Any) -> sa.Column[str]:
    return sa.Column(name, UUID(as_uuid=False), **options)


_PG_TYPES: tuple[tuple[type[Any], str], ...] = (
    (Json, "bytea"),
    (Instant, "float8"),
    (UUID, "uuid"),
    (sa.LargeBinary, "bytea"),
    (sa.Boolean, "bool"),
    (sa.SmallInteger, "int2"),
    (sa.BigInteger, "int8"),
    (sa.Integer, "int4"),
    (sa.Double, "float8"),
    (sa.Text, "text"),
)


def pg_type(column: sa.Column[Any]) -> str:
    """The Postgres name of a column's type, for `unnest($n::type[])`."""
    for kind, name in _PG_TYPES:
        if isinstance(column.type, kind):
            return name
    raise TypeError(f"{column} has a type the kernel cannot write: {column.type!r}")


def _dump_json(value: Any) -> bytes | None:
    return None if value is None else orjson.dumps(value)


def _load_json(value: bytes | None) -> Any:
    return None if value is None else orjson.loads(value)


def _dump_instant(value: float) -> float | None:
    return value or None


def _load_instant(value: float | None) -> float:
    return value or 0.0


def _load_uuid(value: Any) -> str | None:
    return None if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Column:
    """How one field of a row goes to Postgres and back; None: as it is."""

    name: str
    pg_type: str
    dump: Callable[[Any], Any] | None
    load: Callable[[Any], Any] | None


def _column(column: sa.Column[Any]) -> Column:
    kind = pg_type(column)
    if isinstance(column.type, Json):
        return Column(column.name, kind, _dump_json, _load_json)
    if isinstance(column.type, Instant):
        return Column(column.name, kind, _dump_instant, _load_instant)
    if kind == "uuid":
        return Column(column.name, kind, None, _load_uuid)
    return Column(column.name, kind, None, None)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A projection table for the kernel.

    `row` is a frozen dataclass without slots; its fields are the table's columns, in the table's order, `id`
    first. `mutable`: the columns an update writes; the others are written once. `parent`: the column that holds
    the aggregate's id. `live` (and `live_sql`, the same said in SQL) tells the rows that `Rows.live` returns.
    `whole`: live rows are all rows, so one that is not among them does not exist.
    `volatile`: rows others may change behind the lane's back, so they are read with their lock in each transaction.
    """

    table: sa.Table
    row: type[Any]
    columns: tuple[Column, ...]
    mutable: tuple[Column, ...]
    parent: str
    live: Callable[[Any], bool]
    live_sql: str
    whole: bool
    volatile: Callable[[Any], bool] | None
    operational: frozenset[str]

    @property
    def name(self) -> str:
        return self.table.name


@dataclass(frozen=True, slots=True)
class Index:
    """An index: its name and columns; with `where`, of those rows only."""

    name: str
    columns: tuple[str, ...]
    where: str = ""

    def declared(self) -> sa.Index:
        return sa.Index(self.name, *self.columns, postgresql_where=sa.text(self.where) if self.where else None)


def index(name: str, *columns: str, where: str = "") -> Index:
    return Index(name, columns, where)


def table(
    row: type[Any],
    name: str,
    *indexes: Index,
    parent: str = "id",
    live: Callable[[Any], bool] = lambda row: True,
    live_sql: str = "true",
    whole: bool = False,
    volatile: Callable[[Any], bool] | None = None,
    storage: str = "",
    within: sa.MetaData = metadata,
) -> TableSpec:
    """The table of these rows. Raises TypeError if their type has slots, no `id` first, or a field of unknown type.

    A field that may be None is a column that may be null. Updates write all columns but `id`, `tenant_id`, the
    parent, and those declared `Once`. `storage`: Postgres' storage parameters.
    `within`: where it is declared, if it is none of the platform's.
    """
    hints = get_type_hints(row, include_extras=True)
    names = [field.name for field in fields(row)]
    if names[0] != "id" or "__slots__" in vars(row):
        raise TypeError(f"{row.__name__} must begin with its id and have no slots: rows are written by attribute")
    declared = [_Declared.of(name, hints[name]) for name in names]
    made = sa.Table(
        name, within, *(each.column() for each in declared), *(each.declared() for each in indexes),
        info={"storage": storage},
    )  # fmt: skip
    columns = tuple(_column(column) for column in made.columns)
    once = {"id", "tenant_id", parent} | {each.name for each in declared if _ONCE in each.marks}
    return TableSpec(
        table=made,
        row=row,
        columns=columns,
        mutable=tuple(column for column in columns if column.name not in once),
        parent=parent,
        live=live,
        live_sql=live_sql,
        whole=whole,
        volatile=volatile,
        operational=frozenset(each.name for each in declared if _OPERATIONAL in each.marks),
    )


def read_as(row: type[Any], of: sa.Table, parent: str) -> TableSpec:
    """A table whose rows have no id, for reading only: `row` names the columns wanted. Raises KeyError for another."""
    return TableSpec(
        table=of,
        row=row,
        columns=tuple(_column(of.columns[field.name]) for field in fields(row)),
        mutable=(),
        parent=parent,
        live=lambda row: True,
        live_sql="true",
        whole=False,
        volatile=None,
        operational=frozenset(),
    )


_TYPES: dict[Any, Any] = {
    str: sa.Text, int: sa.Integer, float: sa.Double, bool: sa.Boolean, bytes: sa.LargeBinary,
    dict: Json, list: Json, Any: Json,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Declared:
    """One field's annotation taken apart."""

    name: str
    type: Any
    optional: bool
    marks: tuple[Any, ...]

    @classmethod
    def of(cls, name: str, hint: Any) -> _Declared:
        optional = hint is Any
        marks: tuple[Any, ...] = ()
        while True:
            if get_origin(hint) is Annotated:
                hint, *found = get_args(hint)
                marks = (*marks, *found)
            elif get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint):
                optional = True
                hint = Union[tuple(each for each in get_args(hint) if each is not NoneType)]  # noqa: UP007
            else:
                break
        given = [mark for mark in marks if mark not in (_ONCE, _OPERATIONAL)]
        kind = given[0] if given else _TYPES.get(get_origin(hint) or hint)
        if kind is None:
            raise TypeError(f"field {name} has a type that is no column's: {hint}")
        return cls(name, kind, optional or kind is Instant, marks)

    def column(self) -> sa.Column[Any]:
        if self.name == "id":
            return sa.Column(self.name, self.type, primary_key=True)
        return sa.Column(self.name, self.type, nullable=self.optional)
