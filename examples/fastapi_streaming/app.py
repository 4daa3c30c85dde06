"""A chat service that streams its answers. Start it by `uvicorn app:app --workers 2`, and open it in a browser.

A browser that loses its connection continues on any worker behind the last token that it has. Several tabs can watch
one answer, each can stop it, and a message that is sent meanwhile is answered next. The cookie `user` stands for your
authentication.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Body, Cookie, Depends, FastAPI, Header, Request
from fastapi.responses import FileResponse, StreamingResponse

import lash_redis
from lash_redis import Chat, Lease, StreamFailed, StreamGap, StreamGone

answering: set[asyncio.Task[None]] = set()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ.get("CHAT_REDIS_URL", "embedded://chats")
    async with lash_redis.connect(url, namespace="streaming-chat", ttl=30 * 86_400) as app.state.cache:
        yield
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)


app = FastAPI(lifespan=lifespan)


def chat_of(request: Request, chat_id: str, user: Annotated[str, Cookie()]) -> Chat:
    return request.app.state.cache.chat(chat_id, owner=user)


UsersChat = Annotated[Chat, Depends(chat_of)]


async def call_model(messages: list[dict[str, Any]]) -> AsyncIterator[str]:
    for token in f"You wrote: {messages[-1]['content']}".split(" "):
        await asyncio.sleep(float(os.environ.get("CHAT_TOKEN_SECONDS", "0.2")))
        yield token + " "


def start_answering(chat: Chat) -> None:
    task = asyncio.create_task(answer_all(chat))
    answering.add(task)
    task.add_done_callback(answering.discard)


async def answer_all(chat: Chat) -> None:
    """Answer what is waiting. One worker at a time does. If it is killed, its lease ends after 10 seconds."""
    while await is_waiting(chat):
        async with await chat.store.acquire_lease(uuid4().hex, ttl=10.0, wait=60.0) as lease, lease.renewing():
            if await is_waiting(chat):
                await answer_next(chat, lease)


async def is_waiting(chat: Chat) -> bool:
    last = await chat.messages(limit=1)
    return bool(last and last[0]["role"] == "user") or bool(await chat.pending_inputs())


async def answer_next(chat: Chat, lease: Lease) -> None:
    messages = await chat.messages()
    if not messages or messages[-1]["role"] != "user":
        asked = (await chat.pending_inputs())[0]
        messages += await chat.append(asked.item, consumes=[asked.input_id], lease=lease)
    async with chat.stream(lease.owner) as out:  # the owner of the lease is the id of the generation
        text = ""
        async for token in call_model(messages):
            if out.stop_requested:
                break
            text += token
            await out.send(token)
        await chat.append({"role": "assistant", "content": text}, lease=lease, finishes=out)


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


@app.post("/chats/{chat_id}/messages", status_code=202)
async def say(chat: UsersChat, content: Annotated[str, Body()], message_id: Annotated[str, Body(alias="id")]) -> None:
    """Accept a message. A browser may send it again with the same `id`."""
    await chat.enqueue_input({"role": "user", "content": content, "id": message_id})
    start_answering(chat)


@app.get("/chats/{chat_id}")
async def state(chat: UsersChat) -> dict[str, Any]:
    lease = await chat.store.load_lease()
    stream = lease and await chat.store.load_stream(lease.owner)
    if (lease is None or lease.deadline < time.time()) and await is_waiting(chat):
        start_answering(chat)  # the worker that was answering was killed
    return {
        "messages": await chat.messages(limit=50),
        "pending": [asked.item for asked in await chat.pending_inputs()],
        "generation": stream.generation_id if stream and stream.state == "running" else None,
    }


@app.get("/chats/{chat_id}/generations/{generation}")
async def follow(
    chat: UsersChat, generation: str, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """The tokens of an answer as server-sent events, from the one after `Last-Event-ID` on."""

    async def events() -> AsyncIterator[str]:
        yield "retry: 200\n\n"
        try:
            async for event in chat.follow(generation, after=last_event_id, wait=5.0):
                yield f"id: {event.cursor}\ndata: {json.dumps(event.data)}\n\n"
        except (StreamGap, StreamFailed, StreamGone):
            pass  # the page shows what is stored, and follows the next generation
        yield "event: end\ndata:\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/chats/{chat_id}/generations/{generation}/stop")
async def stop(chat: UsersChat, generation: str) -> bool:
    return await chat.store.request_stop(generation)
