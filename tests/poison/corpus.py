"""Records that must end as dead letters, each with the reason it must bear."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import orjson

from schemas.envelope import Envelope, Headers
from schemas.messages import derive
from schemas.topics import MESSAGE_BYTES_MAX, partition_of

COMMANDS_PARTITIONS = 4
TENANT = "t1"
TYPE = "catalog.create_definition"
BODY = b'{"kind":"app","code":"a","name":"A"}'
RUN = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"
OTHER = "7f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"
LONG_AGO = time.time() - 8 * 86_400


@dataclass(frozen=True, slots=True)
class Case:
    """A record as its publisher sends it, and the `code` of the dead letter it must become."""

    name: str
    code: str
    body: bytes | None = BODY
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)
    key: bytes | None = None
    partition: int = 0
    timestamp: float | None = None

    @property
    def message_id(self) -> str:
        return next((text(value) for name, value in reversed(self.headers) if name == "ce_id"), "")


def text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


# --- ingress -------------------------------------------------------------------------------------------------

BODIES: dict[str, tuple[str, bytes | None]] = {
    "no body": ("invalid_json", None),
    "empty body": ("invalid_json", b""),
    "white space": ("invalid_json", b" \n\t "),
    "half an object": ("invalid_json", b'{"kind":"app"'),
    "text after the object": ("invalid_json", BODY + b" x"),
    "two objects": ("invalid_json", BODY + BODY),
    "single quotes": ("invalid_json", b"{'kind':'app'}"),
    "trailing comma": ("invalid_json", b'{"kind":"app",}'),
    "comment": ("invalid_json", b'{"kind":"app"/* x */}'),
    "leading zero": ("invalid_json", b'{"kind":007}'),
    "hexadecimal": ("invalid_json", b'{"kind":0x1F}'),
    "byte order mark": ("invalid_json", b"\xef\xbb\xbf" + BODY),
    "utf-16": ("invalid_json", BODY.decode().encode("utf-16")),
    "latin-1": ("invalid_json", '{"kind":"app","code":"a","name":"é"}'.encode("latin-1")),
    "overlong utf-8": ("invalid_json", b'{"kind":"app","code":"\xc0\xaf","name":"A"}'),
    "surrogate as utf-8": ("invalid_json", b'{"kind":"app","code":"\xed\xa0\x80","name":"A"}'),
    "lone high surrogate": ("invalid_json", b'{"kind":"app","code":"\\ud800","name":"A"}'),
    "lone low surrogate": ("invalid_json", b'{"kind":"app","code":"\\udc00","name":"A"}'),
    "surrogates the wrong way round": ("invalid_json", b'{"kind":"app","code":"\\udc00\\ud800","name":"A"}'),
    "NaN": ("invalid_json", b'{"kind":NaN}'),
    "Infinity": ("invalid_json", b'{"kind":Infinity}'),
    "minus Infinity": ("invalid_json", b'{"kind":-Infinity}'),
    "bare NUL in text": ("invalid_json", b'{"kind":"app","code":"\x00","name":"A"}'),
    "gzip": ("invalid_json", b"\x1f\x8b\x08\x00\x00\x00\x00\x00"),
    "zeros": ("invalid_json", b"\x00" * 1_000),
    "arrays 10 000 deep": ("invalid_json", b"[" * 10_000 + b"]" * 10_000),
    "objects 10 000 deep": ("invalid_json", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "10 000 brackets that never close": ("invalid_json", b"[" * 10_000),
    "U+0000 in text": ("nul_character", b'{"kind":"app","code":"a\\u0000b","name":"A"}'),
    "U+0000 in a key": ("nul_character", b'{"kind":"app","code":"a","name":"A","x\\u0000y":1}'),
    "70 deep": ("too_deep", b'{"a":' * 70 + b"1" + b"}" * 70),
    "900 deep": ("too_deep", b"[" * 900 + b"]" * 900),
    "a list": ("invalid_body", b"[]"),
    "a list of the object": ("invalid_body", b"[" + BODY + b"]"),
    "a string": ("invalid_body", b'"app"'),
    "a number": ("invalid_body", b"7"),
    "null": ("invalid_body", b"null"),
    "true": ("invalid_body", b"true"),
    "a number of 400 digits": ("invalid_json", b"9" * 400),
    "a number of 30 digits": ("invalid_body", b"9" * 30),
    "an infinite number": ("invalid_json", b'{"kind":"app","code":"a","name":1e400}'),
    "an empty object": ("invalid_body", b"{}"),
    "a missing field": ("invalid_body", b'{"kind":"app","code":"a"}'),
    "an unknown field": ("invalid_body", b'{"kind":"app","code":"a","name":"A","is_admin":true}'),
    "an unknown kind": ("invalid_body", b'{"kind":"root","code":"a","name":"A"}'),
    "a number for text": ("invalid_body", b'{"kind":"app","code":"a","name":7}'),
    "a huge number for text": ("invalid_body", b'{"kind":"app","code":"a","name":' + b"9" * 30 + b"}"),
    "a list for text": ("invalid_body", b'{"kind":"app","code":"a","name":["A"]}'),
    "an object for text": ("invalid_body", b'{"kind":"app","code":"a","name":{"$ne":""}}'),
    "null for text": ("invalid_body", b'{"kind":"app","code":"a","name":null}'),
    "an empty code": ("invalid_body", b'{"kind":"app","code":"","name":"A"}'),
    "a code too long": ("invalid_body", b'{"kind":"app","code":"%b","name":"A"}' % (b"a" * 129)),
    "a name of 3 MB": ("invalid_body", b'{"kind":"app","code":"a","name":"%b"}' % (b"a" * 3_000_000)),
    "another type in the body": ("invalid_body", b'{"type":"runtime.cancel_run","kind":"app","code":"a","name":"A"}'),
    "100 000 unknown fields": (
        "invalid_body", b"{" + b",".join(b'"k%d":1' % number for number in range(100_000)) + b"}"
    ),
    "a byte over the limit": ("message_too_large", b'"' + b"a" * (MESSAGE_BYTES_MAX - 1) + b'"'),
    "5 MB": ("message_too_large", b"a" * 5_000_000),
}  # fmt: skip

OF_OTHER_TYPES: dict[str, tuple[str, str, object]] = {
    "a list for inputs": ("invalid_body", "runtime.create_run", {"inputs": []}),
    "a bad uuid": ("invalid_body", "runtime.cancel_run", {"run_id": "not-a-uuid"}),
    "a uuid in braces": ("invalid_body", "runtime.cancel_run", {"run_id": f"{{{RUN}}}"}),
    "a uuid of other digits": ("invalid_body", "runtime.cancel_run", {"run_id": RUN.replace("6", "\uff16")}),
    "a number below its bound": ("invalid_body", "runtime.execute_run", {"run_id": RUN, "max_steps": 0}),
    "a number beyond its bound": ("invalid_body", "runtime.execute_run", {"run_id": RUN, "max_steps": 10**15}),
    "a fraction for a count": ("invalid_body", "runtime.execute_run", {"run_id": RUN, "max_steps": 1.5}),
    "text for yes or no": ("invalid_body", "runtime.cancel_run", {"run_id": RUN, "force": "perhaps"}),
    "an unknown type": ("unknown_type", "catalog.reticulate", {}),
    "a type in capitals": ("unknown_type", TYPE.upper(), {}),
    "a type that is a path": ("unknown_type", "../../etc/passwd", {}),
    "the name of an event": ("unknown_type", "runtime.run_completed", {}),
    "an internal command": ("unknown_type", "runtime.fail_run", {"run_id": RUN, "error": {"code": "x"}}),
    "a result of a step": (
        "unknown_type", "runtime.complete_node", {"run_id": RUN, "node_run_id": RUN, "lease_token": 1}
    ),
    "an API key": ("unknown_type", "access.create_api_key", {"api_key_id": RUN, "name": "x", "secret_sha256": ""}),
}  # fmt: skip


def good_headers(id: str, type: str = TYPE) -> list[tuple[str, bytes | None]]:
    return [*Envelope(id, type, TENANT).headers()]


def replaced(name: str, *values: bytes | None) -> list[tuple[str, bytes | None]]:
    """Good headers with one of another value, of several, or of none."""
    kept = [pair for pair in good_headers(f"header-{uuid.uuid4()}") if pair[0] != name]
    return [*kept, *((name, value) for value in values)]


HEADERS: dict[str, tuple[str, list[tuple[str, bytes | None]]]] = {
    "no headers": ("missing_header", []),
    "no ce_id": ("missing_header", replaced("ce_id")),
    "no ce_type": ("missing_header", replaced("ce_type")),
    "an empty ce_id": ("missing_header", replaced("ce_id", b"")),
    "an empty ce_type": ("missing_header", replaced("ce_type", b"")),
    "names in capitals": ("missing_header", [("CE_ID", b"x"), ("CE_TYPE", TYPE.encode())]),
    "names with hyphens": ("missing_header", [("ce-id", b"x"), ("ce-type", TYPE.encode())]),
    "a structured event": ("missing_header", [("content-type", b"application/cloudevents+json")]),
    "ce_id without value": ("malformed_header", replaced("ce_id", None)),
    "ce_id that is not utf-8": ("malformed_header", replaced("ce_id", b"\xff\xfe")),
    "ce_type that is not utf-8": ("malformed_header", replaced("ce_type", b"\x80")),
    "tenant that is not utf-8": ("malformed_header", replaced("ce_tenantid", b"\xc3\x28")),
    "ce_id with NUL": ("malformed_header", replaced("ce_id", b"a\x00b")),
    "ce_type with NUL": ("malformed_header", replaced("ce_type", TYPE.encode() + b"\x00")),
    "ce_id with a space": ("malformed_header", replaced("ce_id", b"a b")),
    "ce_id with a line break": ("malformed_header", replaced("ce_id", b"a\nb")),
    "ce_id beyond ASCII": ("malformed_header", replaced("ce_id", "é".encode())),
    "ce_id of 129 characters": ("malformed_header", replaced("ce_id", b"a" * 129)),
    "ce_id of 100 KB": ("malformed_header", replaced("ce_id", b"a" * 100_000)),
    "ce_subject of 1 MB": ("malformed_header", replaced("ce_subject", b"a" * 1_000_000)),
    "ce_id twice": ("malformed_header", replaced("ce_id", b"first", b"second")),
    "ce_type twice": ("malformed_header", replaced("ce_type", b"no.such", TYPE.encode())),
    "ce_tenantid twice": ("malformed_header", replaced("ce_tenantid", b"t1", b"t2")),
    "tenant with a control character": ("malformed_header", replaced("ce_tenantid", b"t\x07")),
    "tenant of 129 characters": ("malformed_header", replaced("ce_tenantid", b"t" * 129)),
    "a version that is no number": ("malformed_header", replaced("ce_schemaversion", b"one")),
    "a negative version": ("malformed_header", replaced("ce_schemaversion", b"-1")),
    "a version in other digits": ("malformed_header", replaced("ce_schemaversion", "\uff11".encode())),
    "a version of 400 digits": ("malformed_header", replaced("ce_schemaversion", b"9" * 400)),
    "a re-drive that is no number": ("malformed_header", replaced("ce_redrive", b"1e3")),
    "a reply partition that is a path": ("malformed_header", replaced("ce_replypartition", b"../0")),
    "a version of tomorrow": ("unknown_schema_version", replaced("ce_schemaversion", b"2")),
}


def for_ingress() -> Iterator[Case]:
    for name, (code, body) in BODIES.items():
        yield Case(name, code, body, good_headers(f"body-{uuid.uuid4()}"))
    for name, (code, type, value) in OF_OTHER_TYPES.items():
        yield Case(name, code, orjson.dumps(value), good_headers(f"type-{uuid.uuid4()}", type))
    for name, (code, headers) in HEADERS.items():
        yield Case(name, code, headers=headers)
    junk: Headers = [(f"x-{number}", b"y" * 100) for number in range(5_000)]
    bad = good_headers("bad", "no.such")
    yield Case("5 000 headers", "unknown_type", headers=[*bad, *junk])
    yield Case("a key that is not utf-8", "unknown_type", headers=bad, key=b"\xff\x00\xfe")
    yield Case("a key of 100 KB", "unknown_type", headers=bad, key=b"k" * 100_000)
    yield Case("reply_to", "unknown_type", headers=[*bad, ("reply_to", b"REPLY_TO"), ("correlation_id", b"x")])


# --- commands ------------------------------------------------------------------------------------------------


def command(
    name: str, code: str, body: bytes | None = None, *, type: str = "runtime.cancel_run", **changes: object
) -> Case:
    """A record as the gateway sends it for run RUN, but for what `changes` name: headers by field of the envelope."""
    key = changes.pop("key", RUN.encode())
    partition = int(str(changes.pop("partition", partition_of(RUN, COMMANDS_PARTITIONS))))
    timestamp = changes.pop("timestamp", None)
    id = derive(RUN, name)
    fields: dict[str, object] = {"id": id, "type": type, "tenant_id": TENANT, "fingerprint": "f"} | changes
    envelope = Envelope(**fields)  # type: ignore[arg-type]
    made = orjson.dumps({"run_id": RUN}) if body is None else body
    headers: list[tuple[str, bytes | None]] = [*envelope.headers()]
    return Case(name, code, made, headers, key, partition, timestamp)  # type: ignore[arg-type]


def for_commands() -> Iterator[Case]:
    right = partition_of(RUN, COMMANDS_PARTITIONS)
    wrong = (right + 1) % COMMANDS_PARTITIONS
    yield replace(command("no headers", "missing_header"), headers=[])
    yield command("no tenant", "missing_header", tenant_id="")
    yield command("an id that is no uuid", "malformed_header", id="x")
    yield command("an id in capitals", "malformed_header", id=RUN.upper())
    yield command("an id in braces", "malformed_header", id=f"{{{RUN}}}")
    yield command("the wrong key", "misrouted", key=OTHER.encode())
    yield command("no key", "misrouted", key=None)
    yield command("the key in capitals", "misrouted", key=RUN.upper().encode())
    yield command("a key that is not utf-8", "misrouted", key=b"\xff")
    yield command("a key with a space behind", "misrouted", key=RUN.encode() + b" ")
    yield command("the wrong partition", "misrouted", partition=wrong)
    yield command("half an object", "invalid_json", b"{")
    yield command("NaN", "invalid_json", b'{"run_id":NaN}')
    yield command("U+0000", "nul_character", b'{"run_id":"\\u0000"}')
    yield command("another run's body", "misrouted", orjson.dumps({"run_id": OTHER}))
    yield command("10 000 deep", "invalid_json", b"[" * 10_000)
    yield command("5 MB", "message_too_large", b"a" * 5_000_000)
    yield command("8 days old", "expired", timestamp=LONG_AGO)
    internal = {"fingerprint": "", "type": "runtime.fail_run"}
    yield command("internal: half an object", "invalid_body", b"{", **internal)
    yield command("internal: no body", "invalid_body", b"", **internal)
    yield command("internal: a list", "invalid_body", b"[]", **internal)
    yield command("internal: a lone surrogate", "invalid_body", b'{"run_id":"\\ud800"}', **internal)
    yield command("internal: 10 000 deep", "invalid_body", b"[" * 10_000, **internal)
    yield command("internal: wrong types", "invalid_body", b'{"run_id":7,"error":[]}', **internal)
    huge = {"run_id": RUN, "node_run_id": RUN, "lease_token": 1, "output": {"x": "y" * 4_500_000}}
    result = {"fingerprint": "", "type": "runtime.complete_node"}
    yield command("internal: a result over 4 MiB", "message_too_large", orjson.dumps(huge), **result)
