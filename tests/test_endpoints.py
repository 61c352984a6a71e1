"""What the web application promises, without Ray: answers as classify's, limits that hold, nothing from elsewhere."""

import asyncio
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from starlette.testclient import TestClient

from fruitcnn import frozen, images, serving
from fruitcnn.endpoints import PAGE
from fruitcnn.errors import UsageError
from fruitcnn.serving import ServeConfig
from fruitcnn.uploads import LimitBody
from tests import tiny_bundle

MAX_BODY_BYTES, MAX_PICTURES = 200_000, 3
TEXT_PART = b'--b\r\ncontent-disposition: form-data; name="image"\r\n\r\ntext\r\n--b--\r\n'


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    model = tiny_bundle.write_bundle(tmp_path_factory.mktemp("serve") / "model")
    return ServeConfig(
        model=model, max_body_bytes=MAX_BODY_BYTES, max_pictures=MAX_PICTURES, max_pixels=1_000_000, top_k=2,
        request_seconds=0.5, min_confidence=0.4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def app(config: ServeConfig) -> Any:
    model = frozen.load(config.model)

    async def predict(pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], np.float32]:
        (probabilities,), (unlike,) = model.answer(pixels[np.newaxis])
        return probabilities, unlike

    return serving.build_app(config, model, predict, ThreadPoolExecutor(2))


@pytest.fixture
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def classify(client: TestClient, data: bytes, **named: Any) -> dict[str, Any]:
    response = client.post("/classify", content=data, **named)
    assert response.status_code == 200, response.text
    (row,) = response.json()["predictions"]
    return row


def picture(kind: str, size: tuple[int, int] = (20, 10), color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


# Answers


def test_one_picture_is_answered_as_the_model_does(client: TestClient, config: ServeConfig, jpeg_bytes: Any) -> None:
    data = jpeg_bytes(3, 61, 40)
    row = classify(client, data, headers={"content-type": "image/jpeg"})
    (expected,) = frozen.load(config.model).predict(images.decode(data, tiny_bundle.INPUT_PX).pixels[np.newaxis])
    best = np.argsort(-expected)[:2]
    assert row["top_labels"] == [tiny_bundle.LABELS[index] for index in best]
    assert np.allclose(row["top_scores"], expected[best], atol=1e-6)
    assert (row["label"], row["confidence"]) == (row["top_labels"][0], row["top_scores"][0])
    assert (row["width"], row["height"], row["sha256"]) == (61, 40, hashlib.sha256(data).hexdigest())
    assert row["status"] == ("ok" if expected.max() >= 0.4 else "unsure")


def test_a_body_is_a_picture_whatever_curl_calls_it(client: TestClient) -> None:
    named = {"headers": {"content-type": "application/x-www-form-urlencoded"}}
    assert classify(client, picture("PNG"), **named)["label"] == "red"


def test_grey_is_unsure(client: TestClient) -> None:
    row = classify(client, picture("PNG", color="#808080"))
    assert row["status"] == "unsure"
    assert row["label"] == row["top_labels"][0]


def test_several_pictures_keep_order_and_names_and_a_broken_one_its_cause(client: TestClient) -> None:
    jpeg = picture("JPEG", color="blue")
    files = [("image", ("b.png", picture("PNG", color="#0f0"))), ("image", ("a b.jpg", jpeg[:-40])), ("x", ("é", jpeg))]
    said = client.post("/classify", files=files).json()
    assert [row["id"] for row in said["predictions"]] == ["b.png", "a b.jpg", "é"]
    assert [row["status"] for row in said["predictions"]] == ["ok", "rejected", "ok"]
    assert [row["label"] for row in said["predictions"]] == ["green", None, "blue"]
    assert said["predictions"][1]["cause"] == "truncated"
    assert said["predictions"][1]["top_labels"] == []


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"<html>", "not-an-image"), (b"%PDF-1.7", "unsupported"), (picture("JPEG")[:-30], "truncated"),
        (picture("PNG", (1001, 1000)), "too-large"),
    ],
)  # fmt: skip
def test_causes_are_those_of_the_predictions(client: TestClient, data: bytes, cause: str) -> None:
    row = classify(client, data)
    assert (row["status"], row["cause"]) == ("rejected", cause)
    assert row["cause"] in images.CAUSES


def test_an_answer_has_the_columns_of_the_predictions(client: TestClient) -> None:
    from fruitcnn import parts

    empty = parts.Rows(
        [],
        [],
        [],
        [],
        [],
        [],
        np.zeros((0, 1), np.int64),
        np.zeros((0, 1), np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.float32),
        None,
    )
    import pyarrow.parquet as pq

    columns = pq.read_schema(io.BytesIO(parts.encode(empty, ["a"], 0.0, {}))).names
    assert [*classify(client, picture("PNG"))] == columns


# Limits


@pytest.mark.parametrize("extra", [0, 1])
def test_the_limit_on_the_body_is_exact(client: TestClient, extra: int) -> None:
    data = picture("PNG").ljust(MAX_BODY_BYTES + extra, b"\0")
    assert client.post("/classify", content=data).status_code == (413 if extra else 200)
    chunks = (data[start : start + 50_000] for start in range(0, len(data), 50_000))
    assert client.post("/classify", content=chunks).status_code == (413 if extra else 200)


def ask(app: Any, headers: dict[str, str], receive: Callable[[], Any]) -> tuple[int, dict[bytes, bytes], bytes]:
    """One POST /classify at the level of ASGI: who reads how much is seen there."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/classify", "raw_path": b"/classify", "query_string": b"",
        "http_version": "1.1", "scheme": "http", "root_path": "", "server": ("x", 80), "client": ("y", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    start, body = sent[0], b"".join(each.get("body", b"") for each in sent[1:])
    return start["status"], dict(start["headers"]), body


def test_a_body_that_says_it_is_too_large_is_not_read_at_all(app: Any) -> None:
    async def receive() -> Any:
        pytest.fail("read")

    status, headers, body = ask(app, {"content-length": str(10**12)}, receive)
    assert (status, headers[b"connection"]) == (413, b"close")
    assert b"larger than the 200,000 bytes allowed" in body


@pytest.mark.parametrize("kind", ["image/jpeg", 'multipart/form-data; boundary="b"'])
def test_a_body_without_end_is_read_to_the_limit_and_no_further(app: Any, kind: str) -> None:
    num_read = 0
    part = b'--b\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'

    async def receive() -> Any:
        nonlocal num_read
        num_read += 1
        assert num_read < 30
        body = part if num_read == 1 and "multipart" in kind else bytes(10_000)
        return {"type": "http.request", "body": body, "more_body": True}

    status, _, _ = ask(app, {"content-type": kind}, receive)
    assert (status, num_read) == (413, MAX_BODY_BYTES // 10_000 + 1)


def test_the_proxy_stops_reading_too() -> None:
    """Ray Serve's proxy reads in a task of its own, and ends a request when its client is gone: as done here."""
    num_read = 0

    async def receive() -> Any:
        nonlocal num_read
        num_read += 1
        return {"type": "http.request", "body": bytes(10), "more_body": True}

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        held = []
        while (message := await receive())["type"] != "http.disconnect":
            held.append(message)

    status, _, _ = ask(LimitBody(proxy, 95), {}, receive)
    assert (status, num_read) == (413, 10)


def test_a_body_that_never_comes_is_given_up(app: Any) -> None:
    async def receive() -> Any:
        await asyncio.sleep(60)

    status, _, body = ask(app, {"content-type": "image/jpeg"}, receive)
    assert (status, b"did not arrive within 0.5 s" in body) == (408, True)


def test_number_of_pictures_is_limited(client: TestClient) -> None:
    files = [("image", (f"{number}.png", picture("PNG"))) for number in range(MAX_PICTURES + 1)]
    assert client.post("/classify", files=files[:-1]).status_code == 200
    refused = client.post("/classify", files=files)
    assert refused.status_code == 400
    assert "more than the 3 pictures allowed" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "image/png"), (b"", "multipart/form-data"), (b"x", "multipart/form-data; boundary="),
        (b"--b--\r\n", "multipart/form-data; boundary=b"), (b"no boundary", "multipart/form-data; boundary=b"),
        (TEXT_PART, "multipart/form-data; boundary=b"),
    ],
)  # fmt: skip
def test_a_request_without_a_picture_is_the_client_s_mistake(client: TestClient, content: bytes, kind: str) -> None:
    response = client.post("/classify", content=content, headers={"content-type": kind})
    assert response.status_code == 400, response.text
    assert response.json()["detail"]


# The rest


def test_health_and_model(client: TestClient, config: ServeConfig) -> None:
    model = frozen.load(config.model)
    assert client.get("/health").json() == {"status": "ok", "model_hash": model.model_hash}
    about = client.get("/model").json()
    assert about["labels"] == model.labels
    assert (about["input_px"], about["min_confidence"]) == ([8, 8], 0.4)
    file = client.get(f"/{about['browser']['path']}").content
    assert hashlib.sha256(file).hexdigest() == about["browser"]["sha256"]


def test_wrong_paths_and_methods_are_told(client: TestClient) -> None:
    assert client.get("/nothing").status_code == 404
    assert client.get("/page/../endpoints.py").status_code == 404
    refused = client.get("/classify")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/health"])
def test_browsers_are_held_to_this_address(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_the_page_names_no_other_address() -> None:
    files = [path for path in PAGE.iterdir() if path.suffix in (".html", ".js", ".css")]
    assert files
    for path in files:
        assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", path.read_text()), path


# The job


def test_port_in_use_is_found_before_ray_starts(config: ServeConfig) -> None:
    import socket

    from fruitcnn.errors import UsageError

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port {port}: cannot listen there \(Address already in use\)"):
            serving.check(config.model_copy(update={"port": port}))


def test_damaged_model_is_found_before_ray_starts(tmp_path: Path) -> None:
    model = tiny_bundle.write_bundle(tmp_path / "model")
    file = tmp_path / "model" / "model.onnx"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(UsageError, match=r"^--model \S+: .*model\.onnx: its sha256"):
        serving.check(ServeConfig(model=model, runtime="onnxruntime"))
