"""The envelope of a record: CloudEvents 1.0 in Kafka binary mode, plus W3C trace context.

Source: CloudEvents 1.0.2, Kafka protocol binding 1.0.2 (binary content mode: attributes are headers `ce_*`).
Extensions of ours: `ce_tenantid`, `ce_correlationid`, `ce_causationid`, `ce_schemaversion`, `ce_actor`,
`ce_fingerprint` (commands from outside: what the idempotency key stands for), `ce_replypartition`
(where the gateway instance that waits listens), `ce_answerto` (internal commands that an aggregate waits for:
whom to tell what became of them; set by lanes only), `ce_sequence` (events), `ce_redrive` (n-th re-drive).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from schemas.messages import SCHEMA_VERSION

Headers = list[tuple[str, bytes]]
SOURCE = "agent-platform"
HEADER_BYTES_MAX = 1024
KEY_ACTOR = "api-key:"
"""An actor that begins so is an API key that stands for no user."""
_TRACEPARENT = re.compile(r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")


class Malformed(ValueError):
    """A record that is not one of ours: which header or body is wrong, and why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class AnswerTo(NamedTuple):
    """Who waits for what becomes of an internal command: an aggregate of a domain, for `subject` in it, under one
    wait. On the wire `domain/aggregate/subject/wait_id`.
    """

    domain: str
    aggregate_id: str
    subject: str
    wait_id: str

    def __str__(self) -> str:
        return "/".join(self)

    @classmethod
    def parse(cls, text: str) -> AnswerTo:
        """Raises Malformed."""
        parts = text.split("/")
        if len(parts) != 4 or not all(parts):
            raise Malformed("malformed_header", "ce_answerto must be domain/aggregate/subject/wait_id")
        return cls(*parts)


class Envelope(NamedTuple):
    """Who sent what for whom. `time` is RFC 3339; ids are strings; `sequence` is the event's seq, else 0."""

    id: str
    type: str
    tenant_id: str
    subject: str = ""
    time: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    actor: str = ""
    traceparent: str = ""
    fingerprint: str = ""
    reply_partition: int = -1
    sequence: int = 0
    redrive: int = 0
    schema_version: int = SCHEMA_VERSION
    answer_to: str = ""

    def headers(self) -> Headers:
        found: Headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", self.id.encode()),
            ("ce_source", b"agent-platform"),
            ("ce_type", self.type.encode()),
            ("ce_tenantid", self.tenant_id.encode()),
        ]
        if self.subject:
            found.append(("ce_subject", self.subject.encode()))
        if self.time:
            found.append(("ce_time", self.time.encode()))
        if self.correlation_id:
            found.append(("ce_correlationid", self.correlation_id.encode()))
        if self.causation_id:
            found.append(("ce_causationid", self.causation_id.encode()))
        if self.actor:
            found.append(("ce_actor", self.actor.encode()))
        if self.traceparent:
            found.append(("traceparent", self.traceparent.encode()))
        if self.fingerprint:
            found.append(("ce_fingerprint", self.fingerprint.encode()))
        if self.schema_version != 1:
            found.append(("ce_schemaversion", b"%d" % self.schema_version))
        if self.reply_partition >= 0:
            found.append(("ce_replypartition", b"%d" % self.reply_partition))
        if self.answer_to:
            found.append(("ce_answerto", self.answer_to.encode()))
        if self.sequence:
            found.append(("ce_sequence", b"%d" % self.sequence))
        if self.redrive:
            found.append(("ce_redrive", b"%d" % self.redrive))
        return found


def _number(values: dict[str, str], name: str, default: int) -> int:
    text = values.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise Malformed("malformed_header", f"{name} must be a whole number")
    return int(text)


def decode_headers(headers: Iterable[tuple[str, bytes | None]]) -> Envelope:
    """The envelope of a record; headers that are not ours (`reply_to` among them) are ignored.

    Raises Malformed when a header of ours is missing, not UTF-8, too long or of the wrong form.
    """
    values: dict[str, str] = {}
    for name, value in headers:
        if name.startswith("ce_") or name == "traceparent":
            if value is None or len(value) > HEADER_BYTES_MAX:
                raise Malformed("malformed_header", f"{name} is empty or longer than {HEADER_BYTES_MAX} bytes")
            try:
                text = value.decode()
            except UnicodeDecodeError:
                raise Malformed("malformed_header", f"{name} is not UTF-8") from None
            if "\x00" in text:
                raise Malformed("malformed_header", f"{name} contains U+0000")
            if name in values:
                raise Malformed("malformed_header", f"{name} appears twice")
            values[name] = text
    for name in ("ce_id", "ce_type"):
        if not values.get(name):
            raise Malformed("missing_header", f"{name} is required")
    traceparent = values.get("traceparent", "")
    if traceparent and not _TRACEPARENT.match(traceparent):
        traceparent = ""  # W3C trace context: a malformed one is ignored, not an error.
    return Envelope(
        id=values["ce_id"],
        type=values["ce_type"],
        tenant_id=values.get("ce_tenantid", ""),
        subject=values.get("ce_subject", ""),
        time=values.get("ce_time", ""),
        correlation_id=values.get("ce_correlationid", ""),
        causation_id=values.get("ce_causationid", ""),
        actor=values.get("ce_actor", ""),
        traceparent=traceparent,
        fingerprint=values.get("ce_fingerprint", ""),
        reply_partition=_number(values, "ce_replypartition", -1),
        sequence=_number(values, "ce_sequence", 0),
        redrive=_number(values, "ce_redrive", 0),
        schema_version=_number(values, "ce_schemaversion", 1),
        answer_to=values.get("ce_answerto", ""),
    )


def header(headers: Sequence[tuple[str, bytes]], name: str) -> bytes | None:
    return next((value for key, value in headers if key == name), None)
