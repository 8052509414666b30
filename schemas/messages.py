"""Commands and events: their common shape, ids, and what a refusal is."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from schemas.examples import Example
from schemas.problems import FieldError

UUID_PATTERN = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
"""Ends with \\Z: `$` would let a line feed follow."""
_UUID_ANY_CASE = re.compile(r"^[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\Z")


def _canonical(value: str) -> str:
    if not _UUID_ANY_CASE.match(value):
        raise ValueError("must be a uuid such as 6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e")
    return value.lower()


def storable(value: str) -> str:
    """Postgres text cannot hold U+0000 and UTF-8 cannot encode lone surrogates."""
    if "\x00" in value:
        raise ValueError("must not contain U+0000")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates") from None
    return value


Id = Annotated[str, AfterValidator(_canonical), Example("6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e")]
"""An id of ours: a uuid as a lower-case string."""


def _not_derived(value: str) -> str:
    if value[14] == "5":
        raise ValueError("must not be a version 5 uuid: the platform derives such ids for what is somebody else's too")
    return value


ChosenId = Annotated[Id, AfterValidator(_not_derived)]
"""An id that a sender chooses for what it creates. Ids that can be foretold are of version 5: nobody may take one."""

ForeignId = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(storable)]
"""An id of somebody else's: an opaque string of at most 128 characters."""

Code = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(storable), Example("greet")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(storable), Example("Greet")]
Text = Annotated[str, StringConstraints(max_length=65_536), AfterValidator(storable)]
JsonObject = dict[str, Any]


_VARIANT = {digit: f"{int(digit, 16) & 0x3 | 0x8:x}" for digit in "0123456789abcdef"}


def derive(namespace: str, name: str) -> str:
    """The version 5 uuid (RFC 9562) of `name` in `namespace`, as a string; 3x faster than uuid.uuid5."""
    text = hashlib.sha1(bytes.fromhex(namespace.replace("-", "")) + name.encode()).hexdigest()  # noqa: S324
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:32]}"


def derive_near(namespace: str, name: str) -> str:
    """As `derive`, but the first 24 bits are those of `namespace`: an index keeps close what belongs together.

    So many bits tell the pages of an index of a thousand million rows apart, and leave 98 of the hash: senders may
    choose namespaces and names, and must not find two that collide.
    """
    return namespace[:6] + derive(namespace, name)[6:]


PLATFORM_NAMESPACE = "0f3d2b1e-54a1-5d43-9a0c-6f2a51c7e9b4"


def natural_id(tenant_id: str, kind: str, *parts: str) -> str:
    """The id of whatever must be unique by (tenant, kind, parts): the key is the uniqueness."""
    names = (tenant_id, kind, *parts)
    if any("\x1f" in name or "\x1e" in name for name in names):  # Else one tenant could spell another's id.
        names = tuple(name.replace("\x1e", "\x1e\x1e").replace("\x1f", "\x1e\x1d") for name in names)
    return derive(PLATFORM_NAMESPACE, "\x1f".join(names))


class Message(BaseModel):
    """What commands and events share. `type` is the name on the wire and in the log."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    is_event: ClassVar[bool] = False
    """The same as `isinstance(message, Event)`, which pydantic's metaclass makes slow."""
    type: str

    def encode(self) -> bytes:
        """The JSON body: fields that hold their default are left out; `type` travels in the envelope."""
        return self.__pydantic_serializer__.to_json(self, exclude_defaults=True, by_alias=False)


class Command(Message):
    """A wish, imperative, addressed to one aggregate.

    `public`: outside publishers may send it. `creates`: the aggregate usually does not exist yet.
    `compare_and_set`: the decision itself refuses a repeat (a lease token, a status), so no inbox row is kept
    for it.
    """

    public: ClassVar[bool] = False
    creates: ClassVar[bool] = False
    compare_and_set: ClassVar[bool] = False

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        """The aggregate this command is for: its key on the `commands` topic."""
        raise NotImplementedError


class Event(Message):
    """A fact, past tense, about one aggregate; stored for ever under (aggregate_id, seq)."""

    is_event: ClassVar[bool] = True


class Rejected(Exception):
    """A command refused for a reason its sender can act on; nothing is recorded but the outcome."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        status: int = 409,
        errors: tuple[FieldError, ...] = (),
        **extra: Any,
    ) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail
        self.status = status
        self.errors = errors
        self.extra = extra

    def problem(self) -> JsonObject:
        body: JsonObject = {"code": self.code, "detail": self.detail or self.code, "status": self.status}
        if self.errors:
            body["errors"] = list(self.errors)
        return body | self.extra


SCHEMA_VERSION = 1
