"""Settings of every role: names, bounds and where each value came from."""

import difflib
import fnmatch
import ipaddress
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "AGENT_PLATFORM_"
DATA_DIR_BYTES_MAX = 3_800
"""Linux knows 4095 bytes, and the paths below need some."""
ENV_FILE = ".env"

# Names that the platform's predecessors read and that have no use here; they are reported, not refused.
UNUSED_PATTERNS = (
    "REDIS_URL", "*_SERVICE_URL", "PYTHON_BIN", "SMOKE_*", "WORKER_DRY_RUN", "AGENT_WORKER_DRY_RUN",
    "PROVIDER_BASE_URL", "PROVIDER_API_KEY", "DEFAULT_MODEL", "EMBEDDING_*",
)  # fmt: skip

OTHER_NAMES = {
    "otel_endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT",
}
"""What these fields may be called as well."""

_HOST_NAME = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")

LETTER_DAYS_MIN = 31
"""A day more than the topic keeps their records: else one of them would lack its row."""

Port = Annotated[int, Field(ge=0, le=65535)]
Partitions = Annotated[int, Field(ge=1, le=10_000)]


class SettingsError(Exception):
    """Some settings cannot be used; `problems` names each with its reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Settings(BaseSettings):
    """All settings: read from AGENT_PLATFORM_<NAME>, then from a `.env` file, else the default holds."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    # Where things are
    database_url: Annotated[str | None, Field(repr=False, description="Postgres 18 with pgvector")] = None
    kafka_bootstrap: Annotated[str | None, Field(description="host:port[,host:port] of Kafka")] = None
    data_dir: Annotated[Path, Field(description="data of the embedded services")] = Path(".ap")
    cache_dir: Annotated[Path | None, Field(description="fetched jars; default: the user's cache")] = None
    embedded_kafka_heap_megabytes: Annotated[int, Field(ge=128, le=65_536)] = 512

    # Topics
    topic_prefix: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{0,64}$")] = ""
    commands_partitions: Partitions = 12
    ingress_partitions: Partitions = 4
    events_partitions: Partitions = 12
    steps_partitions: Partitions = 12
    replies_partitions: Partitions = 32
    live_partitions: Partitions = 12
    dead_letters_partitions: Partitions = 6
    topic_replication_factor: Annotated[int, Field(ge=1, le=9)] = 1
    topic_min_insync_replicas: Annotated[int, Field(ge=1, le=9)] = 1

    # Gateway
    gateway_host: str = "127.0.0.1"
    gateway_port: Port = 8000
    allowed_hosts: Annotated[
        str,
        Field(
            description="comma-separated hosts the gateway goes by and whose web pages may call it, *.example.com for "
            "all below; on a loopback address none but those of this machine (always allowed) unless named here; "
            "on another address any if none is named"
        ),
    ] = ""
    gateway_instance: Annotated[int, Field(ge=0, description="which partition of `replies` it reads")] = 0
    auth_required: bool = False
    authz_required: bool = False
    bootstrap_open: Annotated[bool, Field(description="anybody may make the first API key")] = False
    bootstrap_token: SecretStr | None = None
    outcome_wait_seconds: Annotated[float, Field(ge=0, le=30)] = 5
    body_bytes_max: Annotated[int, Field(ge=1024)] = 1024 * 1024
    commands_in_flight_max: Annotated[int, Field(ge=1, description="per tenant")] = 1000
    requests_per_second_max: Annotated[int, Field(ge=1, description="per API key")] = 1000

    # Worker: lanes
    session_timeout_seconds: Annotated[float, Field(ge=1, le=300)] = 6
    heartbeat_seconds: Annotated[float, Field(gt=0, le=60)] = 0.5
    batch_records_max: Annotated[int, Field(ge=1, le=10_000)] = 300
    batch_rows_max: Annotated[int, Field(ge=1, le=100_000)] = 4096
    batch_deciding_milliseconds_max: Annotated[int, Field(ge=1, le=60_000)] = 100

    # Sessions of Postgres
    transaction_timeout_seconds: Annotated[
        float, Field(gt=0, le=600, description="longest transaction of a worker or executor")
    ] = 10
    idle_in_transaction_timeout_seconds: Annotated[
        float, Field(gt=0, le=600, description="longest pause within one, as when its process is frozen")
    ] = 3
    lock_timeout_seconds: Annotated[float, Field(gt=0, le=600, description="longest wait for a row of others")] = 5
    database_connections_max: Annotated[int, Field(ge=1, le=1000, description="of a gateway, for reads")] = 10

    # Steps
    lease_seconds: Annotated[float, Field(gt=0, le=600)] = 8
    lease_renew_seconds: Annotated[float, Field(gt=0, le=600)] = 2
    step_concurrency: Annotated[int, Field(ge=0, le=10_000, description="steps of one kind at once")] = 1000
    step_poll_seconds: Annotated[float, Field(gt=0, le=60)] = 0.5
    code_sandbox: Literal["monty", "bubblewrap"] = "monty"
    max_timeout_seconds: Annotated[float, Field(gt=0, le=3600, description="longest code or tool call")] = 30

    # Retention: how many days things are kept; 0: for ever
    retention_runs_days: Annotated[float, Field(ge=0, description="ended runs, as long as outcomes of commands")] = 30
    retention_human_tasks_days: Annotated[float, Field(ge=0, description="ended human tasks")] = 30
    retention_audits_days: Annotated[float, Field(ge=0, description="audit records of requests")] = 90
    retention_dead_letters_days: Annotated[float, Field(ge=0, description="dead letters nobody dealt with")] = 90
    retention_handled_dead_letters_days: Annotated[
        float, Field(ge=0, description="dead letters retried or dropped; at least 31")
    ] = 31

    # Metrics and traces
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[Port | None, Field(description="of GET /metrics; 0: any free one; none: off")] = None
    otel_endpoint: Annotated[
        str | None,
        Field(
            validation_alias=AliasChoices(PREFIX + "OTEL_ENDPOINT", OTHER_NAMES["otel_endpoint"]),
            description="OTLP/HTTP collector; none: no traces",
        ),
    ] = None
    otel_sample_ratio: Annotated[float, Field(ge=0, le=1, description="of traces that begin here")] = 1.0

    # Logs
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="of every role; libraries say less")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Field(description="a line for each record: text, or a JSON object")
    ] = "text"

    @field_validator("database_url")
    @classmethod
    def _postgres_only(cls, value: str | None) -> str | None:
        return None if value is None else plain_postgres_url(value)

    @field_validator("data_dir")
    @classmethod
    def _can_be_shown(cls, value: Path) -> Path:
        """Such a name in a message would forge a line, or could not be written at all."""
        name = str(value)
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
            shown = ascii(name)
            raise ValueError(f"{shown} has a control character or is not UTF-8: choose another folder")
        path = value.absolute()
        if len(os.fsencode(path)) > DATA_DIR_BYTES_MAX or any(len(os.fsencode(part)) > 255 for part in path.parts):
            raise ValueError(
                f"its path has more than {DATA_DIR_BYTES_MAX} bytes, or a name in it more than 255:"
                " choose another folder"
            )
        return value

    @field_validator("otel_endpoint")
    @classmethod
    def _http_only(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must look like http://collector:4318")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, value: str) -> str:
        names = [name.strip().lower().removesuffix(".") for name in value.split(",") if name.strip()]
        for name in names:
            if not _HOST_NAME.fullmatch(name) and not _is_address(name):
                raise ValueError(
                    f"{name!r} is no host: names such as ap.example.com, *.example.com or [fd00::1], by commas, "
                    "without scheme, port and path"
                )
        return ",".join(names)

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.auth_required and not is_loopback(self.gateway_host):
            raise ValueError(
                f"{PREFIX}AUTH_REQUIRED=false is accepted on a loopback address only, and "
                f"{PREFIX}GATEWAY_HOST is {self.gateway_host}: require authentication or bind to 127.0.0.1"
            )
        if self.heartbeat_seconds * 3 > self.session_timeout_seconds:
            raise ValueError(f"{PREFIX}HEARTBEAT_SECONDS must be at most a third of {PREFIX}SESSION_TIMEOUT_SECONDS")
        if self.lease_renew_seconds * 2 > self.lease_seconds:
            raise ValueError(f"{PREFIX}LEASE_RENEW_SECONDS must be at most half of {PREFIX}LEASE_SECONDS")
        if self.gateway_instance >= self.replies_partitions:
            raise ValueError(f"{PREFIX}GATEWAY_INSTANCE must be below {PREFIX}REPLIES_PARTITIONS")
        for field in ("retention_dead_letters_days", "retention_handled_dead_letters_days"):
            if 0 < getattr(self, field) < LETTER_DAYS_MIN:
                raise ValueError(f"{setting_name(field)} must be at least {LETTER_DAYS_MIN}, or 0 for ever")
        if self.topic_min_insync_replicas > self.topic_replication_factor:
            raise ValueError(f"{PREFIX}TOPIC_MIN_INSYNC_REPLICAS must not exceed {PREFIX}TOPIC_REPLICATION_FACTOR")
        return self

    @property
    def required_database_url(self) -> str:
        return self._required("database_url")

    @property
    def required_kafka_bootstrap(self) -> str:
        return self._required("kafka_bootstrap")

    def require_addresses(self) -> None:
        """Raise SettingsError unless Postgres and Kafka are named."""
        self._required("database_url")
        self._required("kafka_bootstrap")

    def _required(self, field: Literal["database_url", "kafka_bootstrap"]) -> str:
        value: str | None = getattr(self, field)
        if value is None:
            raise SettingsError([f"{setting_name(field)} is not set: start everything by `ap up`, or set it"])
        return value


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; `overrides` (command line options) win. Raises SettingsError naming each problem."""
    problems = unknown_names(_names_given())
    try:
        settings = Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(problems + _explain(error)) from None
    if problems:
        raise SettingsError(problems)
    return settings


def setting_name(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def known_names() -> set[str]:
    return {setting_name(field) for field in Settings.model_fields} | set(OTHER_NAMES.values())


def unused_names(names: Mapping[str, str] | None = None) -> list[str]:
    """Names given that belong to no setting of ours but are known to have been settings elsewhere."""
    given = _names_given() if names is None else names
    return sorted(name for name in given if name.upper() not in known_names() and _is_unused(name))


def unknown_names(given: Mapping[str, str]) -> list[str]:
    """One problem for each name with our prefix that nobody reads, with the nearest one that exists."""
    known = known_names()
    problems = []
    for name in sorted(given):
        if name.upper() in known or _is_unused(name):
            continue
        near = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.5)
        hint = f": did you mean {near[0]}?" if near else "; `ap config` lists all settings"
        problems.append(f"{name} is not a setting{hint}")
    return problems


def setting_sources(settings: Settings, overrides: Mapping[str, Any]) -> dict[str, str]:
    """For each field where its value came from: command line, environment, .env or default."""
    environment = {name.upper() for name in os.environ}
    file = {name.upper() for name in _file_values()}
    sources = {}
    for field in Settings.model_fields:
        names = {setting_name(field), OTHER_NAMES.get(field, "")}
        if overrides.get(field) is not None:
            sources[field] = "command line"
        elif names & environment and field in settings.model_fields_set:
            sources[field] = "environment"
        elif names & file and field in settings.model_fields_set:
            sources[field] = ENV_FILE
        else:
            sources[field] = "default"
    return sources


def masked(settings: Settings, field: str) -> str:
    """The value of a field as it may be shown: secrets and passwords as stars."""
    value = getattr(settings, field)
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return "********"
    return mask_password(str(value)) if field.endswith("_url") else str(value)


def mask_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:********@{host}"))


def plain_postgres_url(url: str) -> str:
    """Take any usual spelling of a Postgres address and give the driver-free one."""
    scheme, separator, rest = url.partition("://")
    base = scheme.lower().partition("+")[0]
    if base == "sqlite" or url.lower().startswith("sqlite:"):
        raise ValueError("SQLite is not supported: give a postgresql:// address, or none for the embedded server")
    if base not in ("postgresql", "postgres") or not separator or not rest:
        raise ValueError("must look like postgresql://user:password@host:5432/database")
    return f"postgresql://{rest}"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    """Whether it is an IPv6 address in brackets."""
    try:
        return name == f"[{name[1:-1]}]" and bool(ipaddress.IPv6Address(name[1:-1]))
    except ValueError:
        return False


def _is_ours(name: str) -> bool:
    return name.upper().startswith(PREFIX) or name.upper() in OTHER_NAMES.values()


def _is_unused(name: str) -> bool:
    rest = name.upper().removeprefix(PREFIX)
    return any(fnmatch.fnmatchcase(rest, pattern) for pattern in UNUSED_PATTERNS)


def _file_values() -> dict[str, str]:
    if not Path(ENV_FILE).is_file():
        return {}
    values = dotenv_values(ENV_FILE, encoding="utf-8")
    return {name: value or "" for name, value in values.items() if _is_ours(name)}


def _names_given() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if _is_ours(name)}
    return _file_values() | environment


def _explain(error: ValidationError) -> list[str]:
    problems = []
    for detail in error.errors(include_url=False, include_context=False):
        message = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:
            problems.append(message)
            continue
        field = str(detail["loc"][0])
        name = field if field.startswith(PREFIX) else setting_name(field)
        problems.append(f"{name}: {message}")
    return problems
