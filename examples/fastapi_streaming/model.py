"""Stands for your model: it repeats the last message, word by word."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any


async def call_model(messages: list[dict[str, Any]]) -> AsyncIterator[str]:
    for token in f"You wrote: {messages[-1]['content']}".split(" "):
        await asyncio.sleep(float(os.environ.get("CHAT_TOKEN_SECONDS", "0.2")))
        yield token + " "
