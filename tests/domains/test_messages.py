"""A changed wire format is seen: messages as they were made still decode, and their schemas are those recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pydantic
import pytest

from infra.cli import json_schema
from schemas import registry
from schemas.envelope import decode_headers
from schemas.workflow.dsl import parse
from tests.golden import canonical
from tests.golden.files import ENVELOPES, MESSAGES, SENT, message_files, path_of, read
from tests.schemas.workflows import A, edge, graph, node

AGAIN = "if that is meant, `python -m tests.golden` records it"


def decoded(name: str, body: bytes) -> Any:
    """As the platform decodes it: from a topic, or from the log."""
    if name in registry.COMMANDS:
        return registry.decode_command(name, body)
    return registry.decode_event(name, body)


@pytest.mark.parametrize("path", message_files(), ids=lambda path: path.stem)
def test_messages_of_old_still_decode_and_encode_as_they_did(path: Path) -> None:
    golden = read(path)
    assert golden["type"] in MESSAGES, f"{golden['type']} has gone: the log may still hold it"
    for body in golden["examples"]:
        message = decoded(golden["type"], orjson.dumps(body))
        assert orjson.loads(message.encode()) == body


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_the_schema_of_a_message_is_the_recorded_one(name: str) -> None:
    path = path_of(name)
    assert path.exists(), f"{name} is new: {AGAIN}"
    assert read(path)["schema_sha256"] == canonical.schema_sha256(MESSAGES[name]), f"{name} has changed: {AGAIN}"


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_the_examples_set_every_field_that_there_is(name: str) -> None:
    fields = set(MESSAGES[name].model_fields) - {"type"}
    seen = {field for body in read(path_of(name))["examples"] for field in body}
    assert seen == fields, f"{name} has other fields: {AGAIN}"


def test_envelopes_are_the_headers_that_they_were() -> None:
    golden = read(ENVELOPES)
    assert set(golden) == set(SENT)
    for name, envelope in SENT.items():
        headers = [(key, value.encode()) for key, value in golden[name]]
        assert envelope.headers() == headers, f"{name}: {AGAIN}"
        assert decode_headers(headers) == envelope


def test_a_changed_field_changes_the_hash_and_words_for_people_do_not() -> None:
    class Before(pydantic.BaseModel):
        """Some words."""

        type: str = "x"
        count: int = 0

    class Words(pydantic.BaseModel):
        """Other words."""

        type: str = "x"
        count: int = pydantic.Field(default=0, description="how many", title="Number")

    class Bound(pydantic.BaseModel):
        """Some words."""

        type: str = "x"
        count: int = pydantic.Field(default=0, ge=0)

    hashes = [canonical.schema_sha256(model) for model in (Before, Words, Bound)]  # type: ignore[arg-type]
    assert hashes[0] == hashes[1] != hashes[2]


# --- the exported schemas ------------------------------------------------------------------------------------


def test_every_message_is_exported(tmp_path: Path) -> None:
    assert json_schema.write(tmp_path) == len(MESSAGES) + 2
    for folder, messages in (("commands", registry.COMMANDS), ("events", registry.EVENTS)):
        assert {path.stem for path in (tmp_path / folder).iterdir()} == set(messages)
    assert orjson.loads((tmp_path / "envelope.json").read_bytes())["required"] == ["ce_id", "ce_type"]


def test_the_envelopes_headers_are_all_described() -> None:
    described = set(json_schema.envelope()["properties"])
    assert {name for envelope in SENT.values() for name, _ in envelope.headers()} <= described


def test_the_workflow_schema_names_every_node_type_and_its_fields() -> None:
    dsl = graph(node("start", "start"), A, edge("start", "a"))
    assert parse(dsl)[0] is not None
    schema = json_schema.workflow()
    item = schema["properties"]["nodes"]["items"]
    assert {each["type"] for each in dsl["nodes"]} <= set(item["properties"]["type"]["enum"])
    for rule in item["allOf"]:
        name = rule["then"]["properties"]["config"]["$ref"].rpartition("/")[2]
        assert schema["$defs"][name]["properties"]["timeout_seconds"]
    references = {each["$ref"] for each in _within(schema) if isinstance(each, dict) and "$ref" in each}
    assert {name.rpartition("/")[2] for name in references} <= set(schema["$defs"])


def _within(document: Any) -> list[Any]:
    children = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    return [document, *(inner for child in children for inner in _within(child))]
