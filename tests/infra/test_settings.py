"""Settings: where they come from, and what is said about a wrong one."""

from pathlib import Path

import pytest

from infra.settings import Settings, SettingsError, load_settings, masked, setting_sources, unused_names


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems(**overrides: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    return caught.value.problems


def test_everything_has_a_default() -> None:
    settings = load_settings()
    assert settings.gateway_host == "127.0.0.1"
    assert settings.gateway_port == 8000
    assert settings.commands_partitions == 12
    assert settings.session_timeout_seconds == 6
    assert not settings.auth_required


def test_an_unknown_name_suggests_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_PLATFORM_DATABSE_URL", "postgresql://u@h/d")
    assert problems() == ["AGENT_PLATFORM_DATABSE_URL is not a setting: did you mean AGENT_PLATFORM_DATABASE_URL?"]


def test_an_unknown_name_in_the_file_is_found_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AGENT_PLATFORM_GATEWAY_PROT=1\nOTHER=2\n")
    assert problems() == ["AGENT_PLATFORM_GATEWAY_PROT is not a setting: did you mean AGENT_PLATFORM_GATEWAY_PORT?"]


def test_all_mistakes_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_PLATFORM_GATEWAY_PORT", "99999")
    monkeypatch.setenv("AGENT_PLATFORM_LEASE_SECONDS", "soon")
    monkeypatch.setenv("AGENT_PLATFORM_NOSUCHTHING_XYZ", "1")
    found = problems()
    assert len(found) == 3
    for name in ("GATEWAY_PORT", "LEASE_SECONDS", "NOSUCHTHING_XYZ"):
        assert any(f"AGENT_PLATFORM_{name}" in problem for problem in found)


def test_names_of_predecessors_are_reported_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "AGENT_WORKER_DRY_RUN", "DEFAULT_MODEL", "EMBEDDING_PROVIDER", "EVENT_SERVICE_URL", "PROVIDER_API_KEY",
        "PROVIDER_BASE_URL", "PYTHON_BIN", "REDIS_URL", "SMOKE_API_KEY", "WORKER_DRY_RUN",
    ]  # fmt: skip
    for name in names:
        monkeypatch.setenv(f"AGENT_PLATFORM_{name}", "x")
    load_settings()
    assert unused_names() == [f"AGENT_PLATFORM_{name}" for name in names]


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_every_usual_postgres_address_is_taken(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_PLATFORM_DATABASE_URL", f"{scheme}://user:secret@db:5432/ap?sslmode=require")
    settings = load_settings()
    assert settings.database_url == "postgresql://user:secret@db:5432/ap?sslmode=require"
    assert settings.required_database_url == "postgresql://user:secret@db:5432/ap?sslmode=require"
    assert "secret" not in repr(settings)
    assert masked(settings, "database_url") == "postgresql://user:********@db:5432/ap?sslmode=require"


@pytest.mark.parametrize("url", ["sqlite:///./team_service.db", "sqlite+aiosqlite:///x"])
def test_sqlite_is_refused_clearly(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_PLATFORM_DATABASE_URL", url)
    (problem,) = problems()
    assert problem.startswith("AGENT_PLATFORM_DATABASE_URL: SQLite is not supported")


@pytest.mark.parametrize("url", ["mysql://x/y", "localhost:5432", "postgresql://"])
def test_other_addresses_are_refused(url: str) -> None:
    (problem,) = problems(database_url=url)
    assert "AGENT_PLATFORM_DATABASE_URL: must look like postgresql://" in problem


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org"])
def test_without_authentication_only_a_loopback_address_is_bound(host: str) -> None:
    (problem,) = problems(gateway_host=host)
    assert "AGENT_PLATFORM_AUTH_REQUIRED=false" in problem
    assert load_settings(gateway_host=host, auth_required=True).gateway_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_authentication(host: str) -> None:
    assert load_settings(gateway_host=host).gateway_host == host


def test_the_environment_wins_over_the_file_and_options_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(
        "AGENT_PLATFORM_GATEWAY_PORT=1\nAGENT_PLATFORM_STEP_CONCURRENCY=2\nAGENT_PLATFORM_LOG_LEVEL=DEBUG\n"
    )
    monkeypatch.setenv("AGENT_PLATFORM_STEP_CONCURRENCY", "3")
    monkeypatch.setenv("AGENT_PLATFORM_GATEWAY_PORT", "4")
    overrides = {"gateway_port": 5}
    settings = load_settings(**overrides)
    assert (settings.gateway_port, settings.step_concurrency, settings.log_level) == (5, 3, "debug")
    sources = setting_sources(settings, overrides)
    assert sources["gateway_port"] == "command line"
    assert sources["step_concurrency"] == "environment"
    assert sources["log_level"] == ".env"
    assert sources["lease_seconds"] == "default"


def test_the_usual_name_of_the_collector_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    settings = load_settings()
    assert settings.otel_endpoint == "http://collector:4318"
    assert setting_sources(settings, {})["otel_endpoint"] == "environment"


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_PLATFORM_BOOTSTRAP_TOKEN", "canary")
    settings = load_settings()
    assert "canary" not in repr(settings)
    for field in Settings.model_fields:
        assert "canary" not in masked(settings, field)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"heartbeat_seconds": 3.0}, "AGENT_PLATFORM_HEARTBEAT_SECONDS"),
        ({"lease_renew_seconds": 5.0}, "AGENT_PLATFORM_LEASE_RENEW_SECONDS"),
        ({"gateway_instance": 32}, "AGENT_PLATFORM_GATEWAY_INSTANCE"),
        ({"topic_min_insync_replicas": 2}, "AGENT_PLATFORM_TOPIC_MIN_INSYNC_REPLICAS"),
        ({"topic_prefix": "a b"}, "AGENT_PLATFORM_TOPIC_PREFIX"),
    ],
)
def test_values_that_contradict_each_other_are_refused(overrides: dict[str, object], named: str) -> None:
    (problem,) = problems(**overrides)
    assert problem.startswith(named)
