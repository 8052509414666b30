"""A key is made, disabled, enabled, deleted."""

from __future__ import annotations

from schemas.access import CreateApiKey, DeleteApiKey, SetApiKeyStatus
from schemas.messages import Command
from tests.domains.examples import Internal, Step

KEY = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"
GIVEN: tuple[Command | Internal, ...] = ()
STEPS: tuple[Step, ...] = (
    CreateApiKey(api_key_id=KEY, name="k", scopes=("gateway:runtime:read",), secret_sha256="0" * 64, user_id="ada"),
    SetApiKeyStatus(api_key_id=KEY, status="disabled"),
    SetApiKeyStatus(api_key_id=KEY, status="active"),
    DeleteApiKey(api_key_id=KEY),
)
