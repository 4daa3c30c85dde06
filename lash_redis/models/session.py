"""The settings of a session: its policy, the stored part of the policy, its turn state, and its meta record."""

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
    """What the execution mode keeps from turn to turn."""

    mode_id: Annotated[str, Rule.REQUIRED] = "standard"
    """The execution mode. Any text is valid; lash defines `standard` and `rlm`."""
    payload: Annotated[Json, Rule.NONE_IF_MISSING] = field(default_factory=dict)
    """The options of that mode as free-form JSON."""


@dataclass(frozen=True, slots=True)
class PersistedTurnState(Record):
    """The position of a session in its turns."""

    turn_index: Annotated[U64, Rule.REQUIRED] = 0
    """The index of the turn, counted by the runtime; 0 for a new session."""
    token_usage: TokenUsage = field(default_factory=TokenUsage)
    """The token counts that the runtime keeps for the session."""
    last_prompt_usage: PromptUsage | None = None
    """The context window at the last prompt; None before the first."""
    mode_turn_options: ModeTurnOptions = field(default_factory=ModeTurnOptions)
    """What the execution mode keeps from turn to turn."""


@dataclass(frozen=True, slots=True)
class PersistedSessionConfig(Record):
    """The part of a policy that the store keeps."""

    provider_id: Annotated[str, Rule.REQUIRED] = ""
    """The kind of the provider. It informs people; a load does not restore the provider from it."""
    configured_model: Annotated[str, Rule.REQUIRED] = ""
    """The name of the model."""
    context_window: Annotated[U64, Rule.REQUIRED] = 0
    """The size of the context window in tokens; 0 if not set."""
    execution_mode: Annotated[str, Rule.REQUIRED] = "standard"
    """The execution mode. Any text is valid; lash defines `standard` and `rlm`."""
    standard_context_approach: ContextApproach | None = None
    """The way the context of a turn is chosen: a JSON object with the key `kind`. None if not set."""
    model_variant: str | None = None
    """The variant of the model; None if not set."""


@dataclass(frozen=True, slots=True)
class ProviderHandle(Record):
    """A provider: its kind, and the config of that kind.

    JSON is flat: one object contains the keys of the config and the key `type`, whose value is the kind. The config
    therefore has no key `type`, and an empty config is read back as None.
    """

    kind: str = "unconfigured"
    """The kind of provider."""
    config: Mapping[str, Any] | None = None
    """The settings of the provider; None for none."""

    def _encode(self, form: Form) -> Any:
        config = {} if self.config is None else self.config
        if not isinstance(config, dict):
            raise Fault(f"expected a JSON object, got {type(config).__name__}", ".config")
        if "type" in config:
            raise Fault("must not contain the key 'type', which JSON uses for the kind", ".config")
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
    """The name of the model."""
    provider: Annotated[ProviderHandle, Rule.REQUIRED] = ProviderHandle()
    """The provider of the model. It is not stored."""
    max_context_tokens: Annotated[U64 | None, Rule.NULLABLE] = None
    """The size of the context window in tokens; None if not set."""
    model_variant: Annotated[str | None, Rule.NULLABLE] = None
    """The variant of the model; None if not set."""
    session_id: Annotated[str | None, Rule.NULLABLE] = None
    """The id of the session; None if not set. It is not stored."""
    autonomous: bool = False
    """Whether the session runs without a person. It is not stored."""
    max_turns: Annotated[U64 | None, Rule.NULLABLE] = None
    """The largest number of turns; None for no limit. It is not stored."""
    execution_mode: Annotated[str, Rule.REQUIRED] = "standard"
    """The execution mode. Any text is valid; lash defines `standard` and `rlm`."""
    standard_context_approach: Annotated[ContextApproach | None, Rule.NONE_IF_MISSING] = field(
        default_factory=lambda: {"kind": "rolling_history"}
    )
    """The way the context of a turn is chosen: a JSON object with the key `kind`. None if not set."""
    prompt: Annotated[JsonObject, Rule.OMIT_EMPTY] = field(default_factory=dict)
    """The prompt layer of lash, a JSON object with a template and slots; empty for none. It is not stored."""


@dataclass(frozen=True, slots=True)
class SessionMeta(Record):
    """The meta record of a session, for people and lists."""

    session_id: str
    """The id of the session."""
    session_name: str
    """The name of the session."""
    created_at: str
    """The time of creation as free text. The store never parses it."""
    model: str
    """The name of the model."""
    cwd: Annotated[str | None, Rule.NULLABLE] = None
    """The working directory; None if unknown."""
    parent_session_id: Annotated[str | None, Rule.NULLABLE] = None
    """The session that this one was made from; None if it has no parent."""


@dataclass(frozen=True, slots=True)
class SessionPickerInfo(Record):
    """One line of a list of sessions."""

    session_id: str
    """The id of the session."""
    cwd: str | None = None
    """The working directory; None if unknown."""
    parent_session_id: str | None = None
    """The session that this one was made from; None if it has no parent."""
    first_user_message: str = ""
    """The text of the first message of a user among all live nodes; empty if there is none."""
    user_message_count: U64 = 0
    """The number of messages of users among all live nodes."""
    head_revision: U64 = 0
    """The number of the last commit; 0 for a session that was created but never committed to."""
    last_commit_ms: U64 = 0
    """The time of the last commit, or of creation, in ms since 1970 by the server's clock."""
    fault: str | None = None
    """Why the session cannot be read; None if it can. The other fields then hold what is known."""
    title: str = ""
    """The name in the session's meta record; empty without a record."""
    owner: str | None = None
    """The user or tenant to whom the session belongs; None if it has no owner."""

    @property
    def cursor(self) -> str:
        """The place of this line in the list, as text. Pass it to get the page that follows."""
        return Cursor(self.last_commit_ms, catalogue_entry(self.session_id, self.parent_session_id)).text


_CURSOR = re.compile(r"after:([0-9]{1,16}):([A-Za-z0-9_-]+=*)")


class Cursor(NamedTuple):
    """A place in the list of sessions, which is in descending order of these two fields."""

    committed_ms: int
    """The time of the session's last commit, in ms since 1970 by the server's clock."""
    entry: bytes
    """The session's entry in the catalogue."""

    @property
    def text(self) -> str:
        return f"after:{self.committed_ms}:{urlsafe_b64encode(self.entry).decode()}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Decode a cursor; return None if `text` is not a cursor."""
        found = _CURSOR.fullmatch(text)
        try:
            return found and cls(int(found[1]), b64decode(found[2], altchars=b"-_", validate=True))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class SessionStoreCreateRequest(Record):
    """The session that `SessionCache.create` makes."""

    session_id: str
    """The id of the session."""
    policy: SessionPolicy = field(default_factory=SessionPolicy)
    """The policy of the session. Only its model is stored, in the meta."""
    parent_session_id: str | None = None
    """The session that this one is made from; None if it has no parent."""
