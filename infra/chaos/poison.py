"""Records that nobody can handle, each with the reason that its dead letter must bear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from schemas.envelope import Envelope, Headers
from schemas.messages import derive
from schemas.topics import COMMANDS, INGRESS, MESSAGE_BYTES_MAX, partition_of

TYPE = "catalog.create_definition"
BODY = b'{"kind":"app","code":"a","name":"A"}'
RUN = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"

_BODIES: tuple[tuple[str, bytes], ...] = (
    ("invalid_json", b""),
    ("invalid_json", b" \n\t "),
    ("invalid_json", b'{"kind":"app"'),
    ("invalid_json", BODY + b" x"),
    ("invalid_json", BODY + BODY),
    ("invalid_json", b"{'kind':'app'}"),
    ("invalid_json", b'{"kind":"app",}'),
    ("invalid_json", b'{"kind":007}'),
    ("invalid_json", b'{"kind":0x1F}'),
    ("invalid_json", b"\xef\xbb\xbf" + BODY),
    ("invalid_json", BODY.decode().encode("utf-16")),
    ("invalid_json", '{"kind":"app","code":"a","name":"é"}'.encode("latin-1")),
    ("invalid_json", b'{"kind":"app","code":"\xc0\xaf","name":"A"}'),
    ("invalid_json", b'{"kind":"app","code":"\xed\xa0\x80","name":"A"}'),
    ("invalid_json", b'{"kind":"app","code":"\\ud800","name":"A"}'),
    ("invalid_json", b'{"kind":"app","code":"\\udc00","name":"A"}'),
    ("invalid_json", b'{"kind":NaN}'),
    ("invalid_json", b'{"kind":Infinity}'),
    ("invalid_json", b'{"kind":-Infinity}'),
    ("invalid_json", b'{"kind":"app","code":"\x00","name":"A"}'),
    ("invalid_json", b"\x1f\x8b\x08\x00\x00\x00\x00\x00"),
    ("invalid_json", b"\x00" * 1_000),
    ("invalid_json", b"[" * 10_000 + b"]" * 10_000),
    ("invalid_json", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    ("invalid_json", b"[" * 10_000),
    ("invalid_json", b"9" * 400),
    ("nul_character", b'{"kind":"app","code":"a\\u0000b","name":"A"}'),
    ("nul_character", b'{"kind":"app","code":"a","name":"A","x\\u0000y":1}'),
    ("too_deep", b'{"a":' * 70 + b"1" + b"}" * 70),
    ("too_deep", b"[" * 900 + b"]" * 900),
    ("invalid_body", b"[]"),
    ("invalid_body", b"[" + BODY + b"]"),
    ("invalid_body", b'"app"'),
    ("invalid_body", b"7"),
    ("invalid_body", b"null"),
    ("invalid_body", b"true"),
    ("invalid_body", b"{}"),
    ("invalid_body", b'{"kind":"app","code":"a"}'),
    ("invalid_body", b'{"kind":"app","code":"a","name":"A","is_admin":true}'),
    ("invalid_body", b'{"kind":"root","code":"a","name":"A"}'),
    ("invalid_body", b'{"kind":"app","code":"a","name":7}'),
    ("invalid_body", b'{"kind":"app","code":"a","name":["A"]}'),
    ("invalid_body", b'{"kind":"app","code":"a","name":{"$ne":""}}'),
    ("invalid_body", b'{"kind":"app","code":"","name":"A"}'),
    ("invalid_body", b'{"kind":"app","code":"%b","name":"A"}' % (b"a" * 129)),
    ("invalid_body", b'{"kind":"app","code":"a","name":"%b"}' % (b"a" * 1_000_000)),
    ("message_too_large", b'"' + b"a" * (MESSAGE_BYTES_MAX - 1) + b'"'),
    ("message_too_large", b"a" * 5_000_000),
)

_TYPES: tuple[tuple[str, str, bytes], ...] = (
    ("unknown_type", "catalog.reticulate", b"{}"),
    ("unknown_type", TYPE.upper(), BODY),
    ("unknown_type", "../../etc/passwd", b"{}"),
    ("unknown_type", "runtime.run_completed", b"{}"),
    ("unknown_type", "runtime.fail_run", b'{"run_id":"%b","error":{"code":"x"}}' % RUN.encode()),
    ("unknown_type", "access.create_api_key", b"{}"),
    ("invalid_body", "runtime.cancel_run", b'{"run_id":"not-a-uuid"}'),
    ("invalid_body", "runtime.execute_run", b'{"run_id":"%b","max_steps":0}' % RUN.encode()),
    ("invalid_body", "runtime.execute_run", b'{"run_id":"%b","max_steps":1.5}' % RUN.encode()),
)

Change = Callable[[Headers], Headers]
_HEADERS: tuple[tuple[str, Change], ...] = (
    ("missing_header", lambda good: []),
    ("missing_header", lambda good: _without(good, "ce_id")),
    ("missing_header", lambda good: _without(good, "ce_type")),
    ("missing_header", lambda good: [*_without(good, "ce_id"), ("ce_id", b"")]),
    ("malformed_header", lambda good: [*_without(good, "ce_id"), ("ce_id", b"\xff\xfe")]),
    ("malformed_header", lambda good: [*_without(good, "ce_id"), ("ce_id", b"a" * 129)]),
    ("malformed_header", lambda good: [*_without(good, "ce_tenantid"), ("ce_tenantid", b"t\x001")]),
)


@dataclass(frozen=True, slots=True)
class Poison:
    """A record as its publisher sends it. `code`: the reason of its dead letter, found by its key."""

    topic: str
    partition: int
    key: str
    headers: Headers
    body: bytes
    code: str


def cases(seed: int, commands_partitions: int, ingress_partitions: int) -> Iterator[Poison]:
    """Every case there is, once; places and keys are the seed's choice."""
    random = Random(f"poison {seed}")
    kinds: list[tuple[str, str, bytes, Change]] = [(code, TYPE, body, _same) for code, body in _BODIES]
    kinds += [(code, type, body, _same) for code, type, body in _TYPES]
    kinds += [(code, TYPE, BODY, change) for code, change in _HEADERS]
    random.shuffle(kinds)
    for number, (code, type, body, change) in enumerate(kinds):
        key = f"poison-{seed}-{number}"
        headers = change([*Envelope(key, type, "chaos-poison").headers()])
        yield Poison(INGRESS, random.randrange(ingress_partitions), key, headers, body, code)
    for number, (code, key, body) in enumerate(_of_commands(seed)):
        id = derive(RUN, f"{seed}/{number}")
        envelope = Envelope(id, "runtime.cancel_run", "chaos-poison", subject=key, fingerprint="poison")
        partition = partition_of(key, commands_partitions)
        yield Poison(COMMANDS, partition, key, [*envelope.headers()], body, code)


def _of_commands(seed: int) -> Iterator[tuple[str, str, bytes]]:
    run = derive(RUN, f"run {seed}")
    yield "invalid_json", f"poison-{seed}-json", b"{"
    yield "nul_character", f"poison-{seed}-nul", b'{"run_id":"%b","reason":"\\u0000"}' % run.encode()
    yield "invalid_body", f"poison-{seed}-body", b'{"run_id":7}'
    yield "misrouted", f"poison-{seed}-key", b'{"run_id":"%b"}' % run.encode()
    yield "message_too_large", f"poison-{seed}-size", b" " * (MESSAGE_BYTES_MAX + 1)


def _same(good: Headers) -> Headers:
    return good


def _without(good: Headers, name: str) -> Headers:
    return [pair for pair in good if pair[0] != name]
