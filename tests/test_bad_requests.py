"""Requests that schemathesis makes up from the OpenAPI description: answered as described, and never with a 500."""

import os
import subprocess
import sys
from pathlib import Path

from fruitcnn.serving import ServeConfig
from tests import tiny_bundle
from tests.web_server import serve_without_ray

NUM_EXAMPLES = os.environ.get("FRUITCNN_BAD_REQUESTS", "20")
"""For each path, beside those that schemathesis derives; the long run takes 2,000."""


def test_no_request_is_answered_unlike_the_description(tmp_path: Path) -> None:
    config = ServeConfig(model=tiny_bundle.write_bundle(tmp_path / "model"), max_body_bytes=1_000_000, max_pictures=4)
    with serve_without_ray(config) as url:
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}openapi.json", "--no-color"]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", NUM_EXAMPLES, "--seed", "0"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=1500)
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
