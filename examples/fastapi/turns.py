"""The turns of the chat service: one at a time on a chat, and each message is answered once."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import HTTPException

from lash_redis import Chat, Lease, TokenLedgerEntry, TokenUsage


async def call_model(messages: list[dict[str, Any]]) -> tuple[dict[str, Any], TokenUsage]:
    await asyncio.sleep(float(os.environ.get("CHAT_MODEL_SECONDS", "0")))
    asked = messages[-1]["content"]
    return {"role": "assistant", "content": f"Echo: {asked}"}, TokenUsage(len(messages), len(asked))


@asynccontextmanager
async def turn(chat: Chat) -> AsyncIterator[Lease]:
    """Let one request at a time work on a chat. If its worker is killed, the chat is free again after 10 seconds."""
    async with await chat.store.acquire_lease(ttl=10.0, wait=60.0) as lease, lease.renewing():
        yield lease


async def answer(chat: Chat, message_id: str, lease: Lease, *, again: bool = False) -> dict[str, Any]:
    messages = await chat.messages()
    at = next((at for at, message in enumerate(messages) if message["id"] == message_id), None)
    if at is None:
        raise HTTPException(409, "the message is not on the active path")
    if not again:
        for later in messages[at + 1 :]:
            if later["role"] == "assistant":
                return later  # an earlier request answered it
        at = len(messages) - 1  # messages that follow have no answer either, and get the same one
    reply, used = await call_model(messages[: at + 1])
    usage = [TokenLedgerEntry("turn", "echo", used)]
    (reply,) = await chat.append(reply, usage=usage, after=messages[at]["id"], lease=lease)
    return reply
