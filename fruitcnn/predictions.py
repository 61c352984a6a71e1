"""The predictions folder besides its plan and parts: attempts, and the manifest that closes the books.

<predictions>/attempts/000001.json  one per start of the job: a newer one stops an older one
<predictions>/manifest.json         written last, put-if-absent: of two that finish the same run, the first one's
"""

import datetime
import json
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from fruitcnn import storage
from fruitcnn.books import ClassifyError, PartBooks, RunManifest, part_path
from fruitcnn.parts import read_books
from fruitcnn.plan import Plan


def load_manifest(predictions: str) -> RunManifest | None:
    """The manifest of a finished run, None if there is none yet; ClassifyError if it cannot be read."""
    try:
        return RunManifest.model_validate_json(storage.read(_manifest_uri(predictions)))
    except storage.NotFoundError:
        return None
    except ValidationError as error:
        raise ClassifyError(
            f"{_manifest_uri(predictions)} is no manifest of this version: delete it, and the same command closes the "
            "books again"
        ) from error


def publish(predictions: str, manifest: RunManifest) -> RunManifest:
    """Write the manifest unless there is one; returns the one that is there now."""
    storage.put_if_absent(_manifest_uri(predictions), manifest.model_dump_json(indent=1).encode() + b"\n")
    published = load_manifest(predictions)
    assert published is not None
    return published


def reopen(predictions: str) -> None:
    """Take the manifest and the report away, because parts are about to change; publish closes the books again."""
    storage.delete(_manifest_uri(predictions))
    storage.delete(storage.join(predictions, "report.html"))


def pending_parts(predictions: str, plan: Plan) -> list[int]:
    """Numbers of the parts that have no file yet."""
    parts_uri = storage.join(predictions, "parts")
    there = {entry.uri.removeprefix(predictions).lstrip("/") for entry in storage.list_files(parts_uri)}
    return [part for part in range(plan.num_parts) if part_path(part) not in there]


def read_finished(predictions: str, plan: Plan, parts: Sequence[int]) -> list[PartBooks]:
    """The books of parts that have a file; PartError if one of them is not this run's."""
    sizes = plan.part_inputs()

    def read(part: int) -> PartBooks:
        return read_books(part, storage.read(storage.join(predictions, part_path(part))), plan.run_id, sizes[part])

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(read, parts))


def claim_attempt(predictions: str) -> int:
    """Enter this start of the job; returns its number, one more than the last."""
    about = {"host": platform.node(), "started_at": datetime.datetime.now(datetime.UTC).isoformat()}
    number = _newest_attempt(predictions) + 1
    while not storage.put_if_absent(_attempt_uri(predictions, number), json.dumps(about).encode()):
        number += 1
    return number


def require_newest(predictions: str, attempt: int) -> None:
    """Raise ClassifyError if the job was started again after this attempt: then that start finishes the run."""
    newest = _newest_attempt(predictions)
    if newest > attempt:
        raise ClassifyError(
            f"attempt {attempt} at {predictions} stops: attempt {newest} was started meanwhile and finishes the run"
        )


def _newest_attempt(predictions: str) -> int:
    entries = storage.list_files(storage.join(predictions, "attempts"))
    return max((int(storage.name(entry.uri).removesuffix(".json")) for entry in entries), default=0)


def _attempt_uri(predictions: str, number: int) -> str:
    return storage.join(predictions, "attempts", f"{number:06d}.json")


def _manifest_uri(predictions: str) -> str:
    return storage.join(predictions, "manifest.json")
