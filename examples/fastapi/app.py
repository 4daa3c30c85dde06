"""A chat service: any worker answers the next message of any chat. Start it by `uvicorn app:app --workers 2`.

Without CHAT_REDIS_URL the workers share an embedded server in the directory `chats`. The header X-User stands for your
authentication: a user sees no chat of another user.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Body, Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse
from turns import answer, turn

import lash_redis
from lash_redis import Chat, InvalidRecord, NodeIdCollision, OwnerMismatch, SessionDeleted


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ.get("CHAT_REDIS_URL", "embedded://chats")
    async with lash_redis.connect(url, namespace="chat-service", ttl=30 * 86_400) as app.state.cache:
        yield


async def refuse(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, STATUS[type(error)])


STATUS: dict[Any, int] = {OwnerMismatch: 404, SessionDeleted: 404, NodeIdCollision: 409, InvalidRecord: 422}
app = FastAPI(lifespan=lifespan, exception_handlers=dict.fromkeys(STATUS, refuse))
User = Annotated[str, Header(alias="X-User")]
Text = Annotated[str, Body(embed=True, min_length=1)]
OwnId = Annotated[str | None, Body(alias="id")]


def chat_of(request: Request, chat_id: str, user: User) -> Chat:
    return request.app.state.cache.chat(chat_id, owner=user)


UsersChat = Annotated[Chat, Depends(chat_of)]


@app.post("/chats")
async def create(request: Request, user: User, title: Text) -> dict[str, str]:
    new = lash_redis.SessionStoreCreateRequest(uuid4().hex)
    await request.app.state.cache.create(new, owner=user, title=title)
    return {"id": new.session_id}


@app.get("/chats")
async def chats(request: Request, user: User, after: str | None = None) -> list[dict[str, Any]]:
    found = [info async for info in request.app.state.cache.sessions(owner=user, limit=20, after=after)]
    return [{"id": info.session_id, "title": info.title, "cursor": info.cursor} for info in found]


@app.get("/chats/{chat_id}")
async def page(chat: UsersChat, limit: int = 50, before: str | None = None) -> list[dict[str, Any]]:
    return await chat.messages(limit=limit, before=before)


@app.post("/chats/{chat_id}/messages")
async def say(chat: UsersChat, content: Text, message_id: OwnId = None) -> dict[str, Any]:
    """Store a message and answer it. A browser that sends its own `id` may send the message again."""
    async with turn(chat) as lease:
        message = {"role": "user", "content": content, "id": message_id or uuid4().hex}
        await chat.append(message, lease=lease)
        return await answer(chat, message["id"], lease)


@app.post("/chats/{chat_id}/messages/{message_id}/again")
async def again(chat: UsersChat, message_id: str, content: Annotated[str, Body(embed=True)] = "") -> dict[str, Any]:
    """Answer a message again, or its edited version. Both are branches; the earlier answer stays."""
    async with turn(chat) as lease:
        if content:
            message_id = (await chat.edit(message_id, {"role": "user", "content": content}))["id"]
        return await answer(chat, message_id, lease, again=True)


@app.put("/chats/{chat_id}/title")
async def rename(chat: UsersChat, title: Text) -> None:
    await chat.set_title(title)


@app.get("/chats/{chat_id}/usage")
async def usage(chat: UsersChat) -> dict[str, Any]:
    return (await chat.usage()).to_json()


@app.delete("/chats/{chat_id}")
async def delete(chat: UsersChat) -> None:
    await chat.delete()
