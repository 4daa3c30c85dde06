"""What a session is set to: its policy, the part of it that is stored, its turn state, and its meta."""

from __future__ import annotations

import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Self

from lash_redis.models.catalogue import catalogue_entry
from lash_redis.models.json_values import Fault, refuse
from lash_redis.models.usage import PromptUsage, TokenUsage
from lash_redis.models.wire import U64, Form, Json, JsonObject, Record, Rule, Shape, shape_of

_OBJECT = shape_of(JsonObject)


def _check_kind(approach: Any) -> None:
    if not isinstance(approach, dict):
        refuse(approach, "a JSON object")
    if not isinstance(approach.get("kind"), str):
        raise Fault("expected a string", ".kind")


def _encode_approach(value: Any, form: Form) -> Any:
    _check_kind(value)
    return _OBJECT.encode(value, form)


def _decode_approach(value: Any) -> Any:
    _check_kind(value)
    return _OBJECT.decode(value)


ContextApproach = Annotated[dict[str, Any], Shape(_encode_approach, _decode_approach)]
"""How the context of a turn is chosen: a JSON object whose `kind` is a string, such as `rolling_history`."""


@dataclass(frozen=True, slots=True)
class ModeTurnOptions(Record):
    """What the execution mode keeps from turn to turn. Any mode id is taken; `standard` and `rlm` are known."""

    mode_id: Annotated[str, Rule.REQUIRED] = "standard"
    payload: Annotated[Json, Rule.NONE_IF_MISSING] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PersistedTurnState(Record):
    """Where the session stands in its turns."""

    turn_index: Annotated[U64, Rule.REQUIRED] = 0
    token_usage: TokenUsage = field(default_factory=TokenUsage)
    last_prompt_usage: PromptUsage | None = None
    mode_turn_options: ModeTurnOptions = field(default_factory=ModeTurnOptions)


@dataclass(frozen=True, slots=True)
class PersistedSessionConfig(Record):
    """The stored part of a policy. A `context_window` of 0 means "not set"; `provider_id` is for people to read."""

    provider_id: Annotated[str, Rule.REQUIRED] = ""
    configured_model: Annotated[str, Rule.REQUIRED] = ""
    context_window: Annotated[U64, Rule.REQUIRED] = 0
    execution_mode: Annotated[str, Rule.REQUIRED] = "standard"
    standard_context_approach: ContextApproach | None = None
    model_variant: str | None = None


@dataclass(frozen=True, slots=True)
class ProviderHandle(Record):
    """A provider by its kind, with a config that only that kind understands.

    Written flat: the config's keys beside `type`, which holds the kind. So a config has no key `type` of its own, and
    an empty one reads back as None.
    """

    kind: str = "unconfigured"
    config: Mapping[str, Any] | None = None

    def _encode(self, form: Form) -> Any:
        config = {} if self.config is None else self.config
        if not isinstance(config, dict):
            raise Fault(f"expected a JSON object, got {type(config).__name__}", ".config")
        if "type" in config:
            raise Fault("must not hold the key 'type'", ".config")
        if not isinstance(self.kind, str):
            raise Fault(f"expected a string, got {type(self.kind).__name__}", ".kind")
        try:
            return _OBJECT.encode({"type": self.kind, **config}, form)
        except Fault as fault:
            raise fault.under(".config") from None

    @classmethod
    def _decode(cls, value: Any) -> Self:
        config = dict(_OBJECT.decode(value))
        kind = config.pop("type", None)
        if not isinstance(kind, str):
            raise Fault("expected a string", ".type")
        return cls(kind, config or None)


@dataclass(frozen=True, slots=True)
class SessionPolicy(Record):
    """How the live session runs. The store keeps only what `PersistedSessionConfig` names."""

    model: Annotated[str, Rule.REQUIRED] = ""
    provider: Annotated[ProviderHandle, Rule.REQUIRED] = ProviderHandle()
    max_context_tokens: Annotated[U64 | None, Rule.NULLABLE] = None
    model_variant: Annotated[str | None, Rule.NULLABLE] = None
    session_id: Annotated[str | None, Rule.NULLABLE] = None
    autonomous: bool = False
    max_turns: Annotated[U64 | None, Rule.NULLABLE] = None
    execution_mode: Annotated[str, Rule.REQUIRED] = "standard"
    standard_context_approach: Annotated[ContextApproach | None, Rule.NONE_IF_MISSING] = field(
        default_factory=lambda: {"kind": "rolling_history"}
    )
    prompt: Annotated[JsonObject, Rule.OMIT_EMPTY] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionMeta(Record):
    """What people see of a session. `created_at` is free text, never parsed."""

    session_id: str
    session_name: str
    created_at: str
    model: str
    cwd: Annotated[str | None, Rule.NULLABLE] = None
    parent_session_id: Annotated[str | None, Rule.NULLABLE] = None


@dataclass(frozen=True, slots=True)
class SessionPickerInfo(Record):
    """One line of a list of sessions. Text and count come from every live node, not only the active path."""

    session_id: str
    cwd: str | None = None
    parent_session_id: str | None = None
    first_user_message: str = ""
    user_message_count: U64 = 0
    head_revision: U64 = 0
    """0 for a session that was created but never committed to."""
    last_commit_ms: U64 = 0
    """When it was last committed to (or created), by the server's clock, in ms since 1970."""
    fault: str | None = None
    """Why the session cannot be read, where it cannot; then the other fields are what is known all the same."""

    @property
    def cursor(self) -> str:
        """Where this line stands in the list, as text to keep between two pages."""
        return Cursor(self.last_commit_ms, catalogue_entry(self.session_id, self.parent_session_id)).text


_CURSOR = re.compile(r"after:([0-9]{1,16}):([A-Za-z0-9_-]+=*)")


class Cursor(NamedTuple):
    """A place in the list of sessions, which goes from the greatest to the least."""

    committed_ms: int
    entry: bytes

    @property
    def text(self) -> str:
        return f"after:{self.committed_ms}:{urlsafe_b64encode(self.entry).decode()}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None where `text` is no cursor."""
        found = _CURSOR.fullmatch(text)
        try:
            return found and cls(int(found[1]), b64decode(found[2], altchars=b"-_", validate=True))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class SessionStoreCreateRequest(Record):
    session_id: str
    policy: SessionPolicy = field(default_factory=SessionPolicy)
    parent_session_id: str | None = None
