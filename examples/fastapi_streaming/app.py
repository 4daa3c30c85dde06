"""A chat service that streams its answers. Start it by `uvicorn app:app --workers 2`, and open it in a browser.

A browser that loses its connection continues on any worker. Several tabs can watch one answer and stop it, and a
message that is sent meanwhile is answered next. The cookie `user` stands for your authentication.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from fastapi import BackgroundTasks, Body, Cookie, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import FileResponse, StreamingResponse
from model import call_model

import lash_redis
from lash_redis import Chat, InvalidRecord, Refused


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ.get("CHAT_REDIS_URL", "embedded://chats")
    async with lash_redis.connect(url, namespace="streaming-chat", ttl=30 * 86_400) as app.state.cache:
        yield


app = FastAPI(lifespan=lifespan)


def chat_of(request: Request, chat_id: str, user: Annotated[str, Cookie()]) -> Chat:
    return request.app.state.cache.chat(chat_id, owner=user)


UsersChat = Annotated[Chat, Depends(chat_of)]
Text, MessageId = Annotated[str, Body()], Annotated[str, Body(alias="id")]


async def answer_all(chat: Chat) -> None:
    """Answer what is pending. One worker at a time does. If it is killed, another one can after 10 seconds."""
    while await chat.pending_inputs():
        async with await chat.store.acquire_lease(uuid4().hex, ttl=10.0, wait=60.0) as lease, lease.renewing():
            for asked in (await chat.pending_inputs())[:1]:  # none if another worker has answered it meanwhile
                text = ""
                async with chat.stream(lease.owner, ttl=10.0) as out:  # the owner is the id of the generation
                    async for token in call_model([*await chat.messages(), asked.item]):
                        if out.stop_requested:
                            break
                        text += token
                        await out.send(token)
                    reply = {"role": "assistant", "content": text}
                    await chat.append(asked.item, reply, consumes=[asked.input_id], lease=lease, finishes=out)


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


@app.post("/chats/{chat_id}/messages", status_code=202)
async def say(chat: UsersChat, content: Text, message_id: MessageId, after: BackgroundTasks) -> None:
    """Accept a message. A browser may send it again with the same `id`."""
    await chat.enqueue_input({"role": "user", "content": content, "id": message_id})
    after.add_task(answer_all, chat)


@app.get("/chats/{chat_id}")
async def state(chat: UsersChat, after: BackgroundTasks) -> dict[str, Any]:
    lease = await chat.store.load_lease()
    stream = lease and await chat.store.load_stream(lease.owner)
    generation = stream.generation_id if stream and stream.state == "running" else None
    messages, pending = await chat.messages(limit=50), [asked.item for asked in await chat.pending_inputs()]
    if pending and not generation:  # the worker that was answering may have been killed
        after.add_task(answer_all, chat)
    return {"messages": messages, "pending": pending, "generation": generation}


@app.get("/chats/{chat_id}/generations/{generation}")
async def follow(chat: UsersChat, generation: str, last_event_id: Annotated[str | None, Header()] = None) -> Any:
    """The tokens of an answer as server-sent events, from the one after `Last-Event-ID` on."""
    try:
        tokens = chat.follow(generation, after=last_event_id, wait=5.0)
    except InvalidRecord as error:
        raise HTTPException(400, str(error)) from error

    async def events() -> AsyncIterator[str]:
        with suppress(Refused):  # after an error, the page shows what is stored, and follows the next generation
            async for token in tokens:
                yield f"id: {token.cursor}\nretry: 200\ndata: {json.dumps(token.data)}\n\n"
        yield "event: end\ndata:\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/chats/{chat_id}/generations/{generation}/stop")
async def stop(chat: UsersChat, generation: str) -> bool:
    return await chat.store.request_stop(generation)
