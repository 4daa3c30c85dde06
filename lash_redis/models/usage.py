"""Token usage: the counts of one turn, and the ledger of a session with its sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Self

from lash_redis._validate import require_type
from lash_redis.errors import InvalidRecord
from lash_redis.models.json_values import MAX_I64, MIN_I64
from lash_redis.models.wire import I64, U64, Record, Rule

_COUNTERS = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class TokenUsage(Record):
    """Counts of tokens. In a delta they may be negative."""

    input_tokens: Annotated[I64, Rule.REQUIRED] = 0
    """Tokens that were sent to the model."""
    output_tokens: Annotated[I64, Rule.REQUIRED] = 0
    """Tokens that the model produced."""
    cached_input_tokens: Annotated[I64, Rule.REQUIRED] = 0
    """Input tokens that the provider took from its cache. They are not part of the total."""
    reasoning_tokens: I64 = 0
    """Tokens that the model used for reasoning. They are part of the total."""

    def total(self) -> int:
        """Return the sum of input, output and reasoning tokens. Cached input tokens are not part of it."""
        return self.input_tokens + self.output_tokens + self.reasoning_tokens

    def is_zero(self) -> bool:
        return not (self.input_tokens or self.output_tokens or self.cached_input_tokens or self.reasoning_tokens)

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class PromptUsage(Record):
    """The use of the context window at one prompt, in tokens."""

    prompt_context_tokens: Annotated[U64, Rule.REQUIRED] = 0
    """Tokens of the context window that the prompt filled."""
    input_tokens: Annotated[U64, Rule.REQUIRED] = 0
    """Input tokens of the prompt."""
    cached_input_tokens: Annotated[U64, Rule.REQUIRED] = 0
    """Input tokens that the provider took from its cache."""
    context_budget_tokens: U64 = 0
    """Tokens that the runtime counts against its context budget; 0 if unknown."""


@dataclass(frozen=True, slots=True)
class TokenLedgerEntry(Record):
    """The tokens that one source used of one model."""

    source: str
    """What used the tokens, such as `turn` or the name of a plugin."""
    model: str
    """The name of the model."""
    usage: TokenUsage
    """The counts."""


def _key_of(entry: TokenLedgerEntry) -> tuple[str, str]:
    """Return source and model as plain texts, so that an Enum member and its value are one key."""
    require_type("TokenLedgerEntry.source", entry.source, str)
    require_type("TokenLedgerEntry.model", entry.model, str)
    return str.__str__(entry.source), str.__str__(entry.model)


def merge_token_ledger(entries: Iterable[TokenLedgerEntry]) -> list[TokenLedgerEntry]:
    """Merge entries to one for each source and model, with added counters, in order of first appearance.

    An entry whose four counters are all zero is omitted. A sum of zero is kept.

    Raises:
        InvalidRecord: a sum is outside the signed 64-bit range; the error names source, model and counter.
    """
    merged: dict[tuple[str, str], TokenUsage] = {}
    for entry in entries:
        if entry.usage.is_zero():
            continue
        key = _key_of(entry)
        known = merged.get(key)
        merged[key] = usage = entry.usage if known is None else known + entry.usage
        for counter in _COUNTERS:
            if not MIN_I64 <= getattr(usage, counter) <= MAX_I64:
                raise InvalidRecord(
                    f"token_ledger[source={key[0]!r}, model={key[1]!r}].{counter}",
                    f"expected a sum in {MIN_I64}..{MAX_I64}, got {getattr(usage, counter)}",
                )
    return [TokenLedgerEntry(source, model, usage) for (source, model), usage in merged.items()]


@dataclass(frozen=True, slots=True)
class UsageTotals(Record):
    """Counts of tokens with their sums."""

    input_tokens: Annotated[I64, Rule.REQUIRED] = 0
    """Tokens that were sent to the model."""
    output_tokens: Annotated[I64, Rule.REQUIRED] = 0
    """Tokens that the model produced."""
    cached_input_tokens: Annotated[I64, Rule.REQUIRED] = 0
    """Input tokens that the provider took from its cache."""
    reasoning_tokens: I64 = 0
    """Tokens that the model used for reasoning."""
    total_tokens: Annotated[I64, Rule.REQUIRED] = 0
    """The sum of input, output and reasoning."""
    context_total_tokens: Annotated[I64, Rule.REQUIRED] = 0
    """The same sum with cached input."""

    @classmethod
    def of(cls, usage: TokenUsage) -> Self:
        total = usage.total()
        return cls(
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_input_tokens,
            usage.reasoning_tokens,
            total,
            total + usage.cached_input_tokens,
        )


@dataclass(frozen=True, slots=True)
class UsageRow(Record):
    """One ledger entry with its sums."""

    source: str
    """What used the tokens."""
    model: str
    """The name of the model."""
    usage: UsageTotals
    """The counts with their sums."""


@dataclass(frozen=True, slots=True)
class SessionUsageReport(Record):
    """The sums of a ledger."""

    entry_count: Annotated[U64, Rule.REQUIRED] = 0
    """The number of ledger entries."""
    usage: Annotated[UsageTotals, Rule.REQUIRED] = UsageTotals()
    """The sum of all entries."""
    by_source: Annotated[Mapping[str, UsageTotals], Rule.REQUIRED] = field(default_factory=dict)
    """The sums by source, in the order of their names."""
    by_model: Annotated[Mapping[str, UsageTotals], Rule.REQUIRED] = field(default_factory=dict)
    """The sums by model, in the order of their names."""
    by_source_model: Annotated[Sequence[UsageRow], Rule.REQUIRED] = ()
    """One row for each entry, in the order of the ledger."""

    @classmethod
    def from_ledger(cls, entries: Iterable[TokenLedgerEntry]) -> Self:
        """Report the sums of the entries, with one row for each entry. No entry is merged or dropped."""
        whole = TokenUsage()
        by_source: dict[str, TokenUsage] = {}
        by_model: dict[str, TokenUsage] = {}
        rows = []
        for entry in entries:
            usage = entry.usage
            whole += usage
            source, model = _key_of(entry)
            by_source[source] = by_source.get(source, TokenUsage()) + usage
            by_model[model] = by_model.get(model, TokenUsage()) + usage
            rows.append(UsageRow(source, model, UsageTotals.of(usage)))
        return cls(
            entry_count=len(rows),
            usage=UsageTotals.of(whole),
            by_source={source: UsageTotals.of(by_source[source]) for source in sorted(by_source)},
            by_model={model: UsageTotals.of(by_model[model]) for model in sorted(by_model)},
            by_source_model=tuple(rows),
        )
