"""The web application over one frozen model: POST /classify, GET /health, /model, /docs, and the page at /.

`build` makes a FastAPI application that needs no Ray: serving puts it on Ray Serve's replicas, tests call it as it is.
Everything a browser loads comes from here, and a Content-Security-Policy keeps it so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fruitcnn.answers import Answer, Predict, Rules, answer
from fruitcnn.uploads import LimitBody, openapi_body, read_uploads

PAGE = Path(__file__).with_name("page")
BROWSER_FILE = "model.onnx"
"""The one file of the bundle that the page asks for, to run the model in the browser."""
BROWSER_RUNTIME = PAGE / "vendor" / "ort.wasm.min.mjs"
"""What runs it there; `make web` fetches it."""

_HEADERS = {
    # wasm-unsafe-eval allows WebAssembly and no eval of text; blob: is the picture that was dropped.
    "content-security-policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self)",
}


class Limits(NamedTuple):
    """What one request may cost."""

    max_body_bytes: int
    max_pictures: int
    request_seconds: float


class Answers(BaseModel):
    """One answer for each picture, in the order they were sent."""

    model_hash: str = Field(description="sha256 of the model's model.json.")
    predictions: list[Answer]


class Health(BaseModel):
    """This process gave the model's golden answers when it started."""

    status: str
    model_hash: str


class About(BaseModel):
    """The model behind /classify, and how it is asked."""

    model_hash: str
    architecture: str
    labels: list[str]
    input_px: list[int] = Field(description="[height, width].", min_length=2, max_length=2)
    runtime: str
    top_k: int
    min_confidence: float = Field(description="Less than this is answered unsure.")
    max_body_bytes: int
    max_pictures: int
    max_pixels: int
    limits: dict[str, Any] = Field(description="From where on an answer is unsure, as in model.json.")
    metrics: dict[str, Any] = Field(description="What the training run measured.")
    created_at: str
    browser: dict[str, Any] | None = Field(description="The file that runs in a browser: path, sha256, num_bytes.")
    has_browser_runtime: bool = Field(description="Whether `make web` has fetched what runs that file in a browser.")


class Problem(BaseModel):
    """What was wrong with the request, and what to do."""

    detail: str


def build(
    about: About, rules: Rules, limits: Limits, predict: Predict, pool: ThreadPoolExecutor, browser_file: Path | None
) -> FastAPI:
    """Return the application. pool: threads that decode; browser_file: model.onnx, if it is offered."""
    # FastAPI's own /docs loads scripts from elsewhere; ours is page/docs.html.
    app = FastAPI(title="fruitcnn", version=about.model_hash[:12], docs_url=None, redoc_url=None)
    app.add_middleware(LimitBody, max_bytes=limits.max_body_bytes)
    app.add_middleware(_AddHeaders)
    problems: dict[int | str, dict[str, Any]] = {
        400: {"model": Problem, "description": "no picture in the request, too many, or a form that cannot be read"},
        408: {"model": Problem, "description": f"the request took longer than {limits.request_seconds:g} s"},
        413: {"model": Problem, "description": "a body too large"},
        503: {"description": "overloaded: try again in a while"},
    }

    async def classify(request: Request) -> Answers:
        """Classify one picture, sent as the body, or several, sent as multipart/form-data.

        Every picture gets an answer: a broken one has the status `rejected` and its cause.
        """
        uploads = await read_uploads(request, limits.max_pictures, limits.request_seconds)
        rows = await asyncio.gather(*(answer(each.name, each.data, rules, predict, pool) for each in uploads))
        return Answers(model_hash=about.model_hash, predictions=list(rows))

    body = {"requestBody": openapi_body(limits.max_pictures)}
    app.post("/classify", responses=problems, openapi_extra=body)(classify)
    app.get("/health")(_constant(Health(status="ok", model_hash=about.model_hash)))
    app.get("/model")(_constant(about))
    _add_page(app, browser_file)
    return app


def _constant(value: BaseModel) -> Callable[[], Awaitable[Any]]:
    async def say() -> Any:
        return value

    say.__name__, say.__doc__ = type(value).__name__.lower(), type(value).__doc__
    say.__annotations__["return"] = type(value)
    return say


def _add_page(app: FastAPI, browser_file: Path | None) -> None:
    hidden: dict[str, Any] = {"include_in_schema": False, "response_class": FileResponse}
    app.get("/", **hidden)(lambda: FileResponse(PAGE / "index.html"))
    app.get("/docs", **hidden)(lambda: FileResponse(PAGE / "docs.html"))

    def model_file() -> FileResponse:
        if browser_file is None:
            raise HTTPException(404, f"this model has no {BROWSER_FILE}")
        return FileResponse(browser_file, media_type="application/octet-stream")

    app.get(f"/{BROWSER_FILE}", **hidden)(model_file)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")


class _AddHeaders:
    """ASGI middleware: _HEADERS on every response (a FastAPI middleware function would cost a task a request)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-cache")  # kept, but asked for again: the ETag answers
            await send(message)

        await self.app(scope, receive, send_more)
