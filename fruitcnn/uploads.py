"""What people send -> pictures as bytes, within limits on size, number and time. Called by endpoints. Pure.

The size is looked at twice: a Content-Length over the limit is answered before a byte of the body is read, and a body
that does not say its length is counted as it comes and cut off at the limit. LimitBody does both for any ASGI
application; `proxy_middlewares` puts it in front of Ray Serve's proxy as well, which would otherwise hold all of an
upload in memory while the request waits for a replica.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any, NamedTuple

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_VARIABLE = "FRUITCNN_MAX_BODY_BYTES"
"""Tells the limit to the proxy, a process of Ray's; jobs.serve takes max_body_bytes from the same variable."""

_LONGEST_NAME_CHARS = 1000
_MAX_FIELDS = 1000
"""Of text, which a form may have beside its pictures: read over."""


class Upload(NamedTuple):
    """One picture as it was sent."""

    name: str
    data: bytes


class LimitBody:
    """ASGI middleware: requests with a larger body get 413, and what is left of the body is never read."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413, or hand on to the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_bytes:
            await self._refuse(send)
            return
        counted = _Counted(receive, send, self.max_bytes)
        try:
            await self.app(scope, counted.receive, counted.send)
        except ClientDisconnect:
            if not counted.is_over:
                raise
        if counted.is_over and not counted.has_started:
            await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        detail = f"the body is larger than the {self.max_bytes:,} bytes allowed; send fewer or smaller pictures"
        body = json.dumps({"detail": detail}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        # The connection still carries a body that nobody will read, so it cannot be used again.
        await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": body})


class _Counted:
    """receive and send of one request: past the limit the application finds its client gone, and its answer unheard."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int) -> None:
        self._receive, self._send, self._left = receive, send, max_bytes
        self.is_over = self.has_started = False

    async def receive(self) -> Message:
        """The next piece of the body, as ASGI has it; a hang-up once they are too many bytes."""
        if self.is_over:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.is_over = True
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """Pass the answer on, unless the client is to get another one."""
        if self.is_over and not self.has_started:
            return
        self.has_started = True
        await self._send(message)


def proxy_middlewares() -> list[Middleware]:
    """Return what Ray Serve's proxy puts in front of everything; it finds this function by its name."""
    return [Middleware(LimitBody, max_bytes=int(os.environ[MAX_BODY_VARIABLE]))]


async def read_uploads(request: Request, max_pictures: int, seconds: float) -> list[Upload]:
    """Return the pictures of a request: those of a multipart form, or the body as one.

    HTTPException 400 for a body that holds none or too many or cannot be read, 408 if it takes longer to arrive.
    """
    try:
        async with asyncio.timeout(seconds):
            if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
                return await _form(request, max_pictures)
            data = await request.body()
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {seconds:g} s") from None
    if not data:
        raise HTTPException(400, "no picture: send its bytes as the body, or several as multipart/form-data")
    return [Upload("picture", data)]


async def _form(request: Request, max_pictures: int) -> list[Upload]:
    too_many = HTTPException(400, f"more than the {max_pictures} pictures allowed in one request; send several")
    try:
        form = await request.form(max_files=max_pictures, max_fields=_MAX_FIELDS)
    except HTTPException as error:
        raise too_many if "Too many files" in error.detail else error from None
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPException(400, 'no picture in the form: send each as a file part, as curl -F "image=@a.jpg" does')
        return [Upload(_name(each.filename), await each.read()) for each in files]
    finally:
        await form.close()


def _name(filename: str | None) -> str:
    text = (filename or "picture").encode("utf-8", "backslashreplace").decode()
    return text[:_LONGEST_NAME_CHARS]


def openapi_body(max_pictures: int) -> dict[str, Any]:
    """Return how /classify's body reads in OpenAPI."""
    picture = {"type": "string", "format": "binary"}
    one = {"schema": picture | {"minLength": 1}}
    pictures = {"type": "array", "items": picture, "minItems": 1, "maxItems": max_pictures}
    form = {"type": "object", "properties": {"image": pictures}, "required": ["image"]}
    content = {"image/jpeg": one, "image/png": one, "application/octet-stream": one}
    return {"required": True, "content": {**content, "multipart/form-data": {"schema": form}}}
