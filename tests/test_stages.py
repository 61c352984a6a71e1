"""stages.py: both models really answer, their flips are found and shown; and one whole night, nothing injected."""

import datetime
import hashlib
import io
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fruitcnn import registry, storage, versions
from fruitcnn.manifest import Manifest, Split, StoredFile, publish
from fruitcnn.parquet import Row, encode
from fruitcnn.recipe import TrainConfig
from fruitcnn.retrain import Challenge, retrain
from fruitcnn.retrain_config import RetrainConfig
from fruitcnn.stages import RayStages
from fruitcnn.thresholds import Thresholds
from jobs.cli import progress
from jobs.cli import ray_session as session
from tests.tiny_bundle import LABELS, write_bundle

NUM_ROWS = 20


def write_dataset(folder: Path) -> tuple[str, Manifest]:
    """Pictures in which the channel of their class is the brightest; the second half came with version 2."""
    rows = [_row(label, number) for label in range(len(LABELS)) for number in range(NUM_ROWS)]
    shards = []
    for place, part in enumerate((rows[::2], rows[1::2])):
        data, path = encode(part, LABELS), f"shards/test-{place:05d}.parquet"
        storage.write(storage.join(str(folder), path), data)
        digest = hashlib.sha256(data).hexdigest()
        shards.append(StoredFile(path=path, num_rows=len(part), num_bytes=len(data), sha256=digest))
    for version in (1, 2):
        manifest = Manifest(
            version=version, classes=LABELS,
            splits={"train": Split(shards=tuple(shards[:version])), "test": Split(shards=tuple(shards[:version]))},
            num_rejected_by_cause={}, source="drawn", source_fingerprint="0", listings=(),
            config={"max_pixels": 10**6}, library_version="0",
            created_at=datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC),
        )  # fmt: skip
        publish(str(folder), manifest)
    return str(folder), manifest


def _row(label: int, number: int) -> Row:
    pixels = np.random.default_rng(number).integers(0, 100, (8, 8, 3), dtype=np.uint8)
    pixels[..., label] += 100
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    return Row(data, f"{LABELS[label]}/{number}.png", label, hashlib.sha256(data).hexdigest(), LABELS[label])


def test_a_challenger_that_calls_everything_otherwise_is_rejected_and_the_report_shows_every_change(
    tmp_path: Path,
) -> None:
    dataset, manifest = write_dataset(tmp_path / "dataset")
    work = str(tmp_path / "work")
    write_bundle(Path(work, "model"), sharpness=-0.05)
    run = storage.join(work, "run")
    training = TrainConfig(dataset=dataset, run=run)
    said = {"config": training.model_dump(mode="json"), "classes": list(LABELS), "num_train_rows": 60}
    storage.write_json(storage.join(run, "config.json"), said)
    challenge = Challenge(
        dataset, manifest, work, training, 1, write_bundle(tmp_path / "champion"), judged_version=1, flips=None
    )
    stages = RayStages(progress, nullcontext)
    comparison = stages.compare(challenge, Thresholds())
    verdict, flips = comparison.verdict, comparison.flips
    assert not verdict.promote
    assert verdict.figures["champion_accuracy"] == 1.0
    assert verdict.figures["challenger_accuracy"] == 0.0
    assert "worse on the" in verdict.reason
    assert f"{3 * NUM_ROWS // 2}" in verdict.reason  # only the rows of version 1 were known to the champion
    assert flips.counts() == {"better": 0, "worse": 3 * NUM_ROWS, "neither": 0, "unknown": 0}
    assert sum(comparison.confidences) == 3 * NUM_ROWS
    report = str(tmp_path / "report.html")
    stages.report(challenge, comparison, report)
    page = Path(report).read_text()
    assert "Labels that change" in page
    assert "60\N{NO-BREAK SPACE}pictures of 60 held out would get another label" in page
    assert page.count("data:image/png") >= len(flips.pairs())


@pytest.mark.long
@pytest.mark.flow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_whole_night_makes_a_champion_and_the_next_one_has_nothing_to_do(ray_session: None, tmp_path: Path) -> None:
    uri = str(tmp_path / "registry")
    thresholds = tmp_path / "gate.yaml"
    thresholds.write_text("min_first_accuracy: 0.1")
    config = RetrainConfig(
        source="synthetic:3x24", dataset=str(tmp_path / "dataset"), registry=uri, images_seen=640,
        thresholds=str(thresholds),
    )  # fmt: skip
    stages: list[str] = []
    for outcome in ("promoted", "nothing new"):
        began = time.monotonic()
        assert retrain(config, RayStages(progress, session), stages.append).outcome == outcome
    assert time.monotonic() - began < 10
    assert stages == ["take in", "train", "freeze", "compare", "report", "publish", "take in"]
    assert registry.resolve(f"registry:{uri}@champion") == registry.version_uri(uri, 1)
    assert not [finding for finding in versions.verify(uri) if finding.problem]
    (record,) = registry.read_log(uri)
    assert "<html" in storage.read(record.evidence["report"]).decode()
