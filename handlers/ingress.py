"""Who may publish to `ingress`, and what becomes of a record there."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from schemas import registry
from schemas.envelope import Envelope, Malformed
from schemas.messages import SCHEMA_VERSION, Command, derive, natural_id

_ID = re.compile(r"^[!-~]{1,128}\Z")
_TENANT = re.compile(r"^[^\x00-\x1f\x7f]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class IngressRules:
    """With `auth_required` everything is refused until tokens exist; without it the envelope's tenant holds."""

    auth_required: bool

    def __call__(self, envelope: Envelope, body: bytes) -> tuple[Envelope, Command]:
        """The command to move on, with an id that no other tenant can name. Raises Malformed."""
        if self.auth_required:
            raise Malformed("unauthenticated", "records on ingress need a token, and none are issued here")
        if not _ID.match(envelope.id):
            raise Malformed("malformed_header", "ce_id must be 1 to 128 printable ASCII characters")
        tenant = envelope.tenant_id or "public"
        if not _TENANT.match(tenant):
            raise Malformed("malformed_header", "ce_tenantid must be 1 to 128 printable characters")
        if envelope.schema_version > SCHEMA_VERSION:
            raise Malformed("unknown_schema_version", f"schema version {envelope.schema_version} is not known")
        known = registry.COMMANDS.get(envelope.type)
        if known is None or not known.public:
            raise Malformed("unknown_type", f"no public command is called {envelope.type!r}")
        command = registry.decode_command(envelope.type, body)
        command_id = derive(natural_id(tenant, "command"), envelope.id)
        moved = envelope._replace(
            id=command_id,
            tenant_id=tenant,
            subject=command.aggregate_id(tenant, command_id),
            correlation_id=envelope.correlation_id or envelope.id,
            causation_id=envelope.id,
            fingerprint=hashlib.sha256(envelope.type.encode() + b"\n" + command.encode()).hexdigest(),
            reply_partition=-1,
            sequence=0,
            redrive=0,
            answer_to="",
        )
        return moved, command
