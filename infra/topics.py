"""The topics on the broker: made where missing, checked where there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from infra.database import migrate as database
from infra.settings import Settings, SettingsError, setting_name
from schemas import topics
from schemas.topics import BROKER_MESSAGE_BYTES_MAX, TOPICS, Topic


class TopicMismatch(SettingsError):
    """A topic on the broker has another number of partitions than Postgres has recorded."""


def partitions_of(topic: Topic, settings: Settings) -> int:
    """How many partitions a topic shall have by the settings."""
    by_name = {
        topics.COMMANDS: settings.commands_partitions,
        topics.INGRESS: settings.ingress_partitions,
        topics.EVENTS: settings.events_partitions,
        topics.REPLIES: settings.replies_partitions,
        topics.LIVE: settings.live_partitions,
        topics.DEAD_LETTERS: settings.dead_letters_partitions,
    }
    return by_name.get(topic.name, settings.steps_partitions)


async def as_recorded(settings: Settings) -> Settings:
    """The settings with as many partitions of `commands` and `ingress` as Postgres has lanes: topics grow.

    Raises TopicMismatch if a number was set that is another one.
    """
    lanes = await database.recorded_partitions(settings.required_database_url)
    found: dict[str, int] = {}
    for topic in (topics.COMMANDS, topics.INGRESS):
        field, recorded = f"{topic}_partitions", lanes.get(topic)
        wanted = getattr(settings, field)
        if recorded is None or recorded == wanted:
            continue
        if field in settings.model_fields_set:
            raise TopicMismatch(
                [
                    f"{setting_name(field)} is {wanted}, and Postgres has recorded {recorded}: leave it out, or set it"
                    f" so; more partitions are made by `ap topics grow {topic}`"
                ]
            )
        found[field] = recorded
    return settings.model_copy(update=found) if found else settings


async def check(settings: Settings) -> Settings:
    """`as_recorded`, and the broker agrees. Raises TopicMismatch; a growth that was interrupted is one too."""
    settings = await as_recorded(settings)
    async with administration(settings) as admin:
        await _check(admin, settings, [topic for topic in TOPICS if topic.name in (topics.COMMANDS, topics.INGRESS)])
    return settings


async def create(settings: Settings) -> None:
    """Make the topics that are missing. Raises TopicMismatch for one that has another number of partitions."""
    settings = await as_recorded(settings)
    async with administration(settings) as admin:
        known = set(await admin.list_topics())
        missing = [topic for topic in TOPICS if settings.topic_prefix + topic.name not in known]
        if missing:
            answer = await admin.create_topics([_new(topic, settings) for topic in missing])
            for topic_errors in getattr(answer, "topic_errors", ()):
                error = for_code(topic_errors[1])
                if topic_errors[1] and error is not TopicAlreadyExistsError:
                    raise error(topic_errors[0])
        await _check(admin, settings, list(TOPICS))


@contextlib.asynccontextmanager
async def administration(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client that may make, change and delete topics."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.required_kafka_bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


def _new(topic: Topic, settings: Settings) -> NewTopic:
    configs = {
        "retention.ms": str(topic.retention_seconds * 1_000),
        "max.message.bytes": str(BROKER_MESSAGE_BYTES_MAX),
        "min.insync.replicas": str(settings.topic_min_insync_replicas),
    }
    if topic.name == topics.INGRESS:
        configs["message.timestamp.type"] = "LogAppendTime"
        # Publishers compress as they like; the broker undoes what our workers might have no decoder for.
        configs["compression.type"] = "uncompressed"
    return NewTopic(
        name=settings.topic_prefix + topic.name,
        num_partitions=partitions_of(topic, settings),
        replication_factor=settings.topic_replication_factor,
        topic_configs=configs,
    )


async def _check(admin: AIOKafkaAdminClient, settings: Settings, wanted: list[Topic]) -> None:
    names = {settings.topic_prefix + topic.name: partitions_of(topic, settings) for topic in wanted}
    for described in await admin.describe_topics(list(names)):
        there = len(described["partitions"])
        expected = names[described["topic"]]
        if there and there != expected:
            raise TopicMismatch(
                [
                    f"topic {described['topic']} has {there} partitions, {expected} are recorded;"
                    f" if it was being grown, run `ap topics grow` again"
                ]
            )
