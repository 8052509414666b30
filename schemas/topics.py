"""The topics of the bus: names, partitions, retention, and which partition a key belongs to."""

from __future__ import annotations

from dataclasses import dataclass

COMMANDS = "commands"
INGRESS = "ingress"
EVENTS = "events"
REPLIES = "replies"
LIVE = "live"
DEAD_LETTERS = "dead-letters"
STEPS = "steps"
STEP_KIND_HEADER = "ce_stepkind"
"""Of a hint on `steps`: which kind of step waits."""

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
BROKER_MESSAGE_BYTES_MAX = 8 * 1024 * 1024
DEAD_LETTER_BODY_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    partitions: int
    retention_seconds: int


TOPICS = (
    Topic(COMMANDS, 12, 7 * 86_400),
    Topic(INGRESS, 12, 7 * 86_400),
    Topic(EVENTS, 12, 7 * 86_400),
    Topic(STEPS, 12, 3_600),
    Topic(REPLIES, 32, 600),
    Topic(LIVE, 12, 600),
    Topic(DEAD_LETTERS, 6, 30 * 86_400),
)


def murmur2(data: bytes) -> int:
    """Kafka's default partitioner hash: murmur2, 32 bit, seed 0x9747b28c (org.apache.kafka.common.utils.Utils)."""
    m = 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & 0xFFFFFFFF
        k = (k ^ k >> 24) * m & 0xFFFFFFFF
        h = h * m & 0xFFFFFFFF ^ k
    rest = data[whole:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & 0xFFFFFFFF
    h = (h ^ h >> 13) * m & 0xFFFFFFFF
    return h ^ h >> 15


def partition_of(key: str, partitions: int) -> int:
    """The partition of a key, as Kafka's Java client and aiokafka compute it."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions
