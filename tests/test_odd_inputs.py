"""A thousand odd files and some odd archives: each has its row and a cause, nothing crashes, nothing is left out."""

import io
import os
import random
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_classify import no_progress, rows_by_id
from tiny_bundle import write_bundle

from fruitcnn import fetch, images
from fruitcnn.books import RunManifest
from fruitcnn.classify import classify
from fruitcnn.classify_config import ClassifyConfig

SAVED = ("AVIF", "BMP", "DDS", "DIB", "EPS", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MPO", "PCX", "PDF", "PNG",
         "PPM", "QOI", "SGI", "SPIDER", "TGA", "TIFF", "WEBP", "XBM")  # fmt: skip
UNREAD = ("EPS", "IM", "PDF", "SPIDER", "XBM")
NUM_CUTS = 36
NUM_MEMBERS = 100_000 if "FRUITCNN_ROUNDS" in os.environ else 66_000  # beyond 65,535 a zip needs zip64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bundle(tmp_path_factory.mktemp("model") / "tiny")


def run(model: str, images_uri: str, out: Path) -> RunManifest:
    return classify(ClassifyConfig(model=model, images=images_uri, predictions=str(out)), no_progress)


def saved(format_name: str, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mode = {"XBM": "1", "SPIDER": "F"}.get(format_name, "RGB")
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format_name)
    return buffer.getvalue()


def test_a_thousand_odd_files(model: str, tmp_path: Path, jpeg_bytes: Callable[..., bytes]) -> None:
    folder, wanted = tmp_path / "in", {}
    folder.mkdir()

    def put(name: str | bytes, data: bytes, cause: str | None) -> None:
        """cause: what the row must say; "ok" for none, "refused" for a format that is not read, None for anything."""
        path = os.path.join(os.fsencode(folder), os.fsencode(name))  # noqa: PTH118
        with open(path, "wb") as file:
            file.write(data)
        wanted[os.fsdecode(path).encode("utf-8", "backslashreplace").decode()] = cause

    draw = random.Random(0)
    for seed, format_name in enumerate(SAVED):
        data = saved(format_name, seed)
        put(f"whole.{format_name}", data, "refused" if format_name in UNREAD else "ok")
        for number in range(NUM_CUTS):
            put(f"cut-{number}.{format_name}", data[: draw.randrange(1, len(data))], None)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
        put(f"turned-{orientation}.jpg", buffer.getvalue(), "ok")
    for number in range(80):
        put(f"noise-{number}.jpg", draw.randbytes(draw.randrange(1, 4000)), None)
        put(f"flipped-{number}.jpg", flipped(jpeg_bytes(number), draw), None)
    put("bomb.png", bomb(20_000, 20_000), "too-large")
    put("wrong-ending.png", jpeg_bytes(1), "ok")
    put("wrong-ending.txt", jpeg_bytes(2), "ok")
    put("no-ending", jpeg_bytes(3), "ok")
    put("empty.jpg", b"", "empty")
    put("apfel-äöü-🍎.jpg", jpeg_bytes(4), "ok")
    put(b"latin-\xe4\xff.jpg", jpeg_bytes(5), "ok")
    put("a b!c=d#e%20f.jpg", jpeg_bytes(6), "ok")
    put("unreadable.jpg", jpeg_bytes(7), "ok" if os.geteuid() == 0 else "access-denied")
    (folder / "unreadable.jpg").chmod(0)
    (folder / "folder.jpg").mkdir()
    put("folder.jpg/inside.jpg", jpeg_bytes(8), "ok")
    (folder / "folder.jpg" / "up").symlink_to(folder)
    for name, target, cause in (("loop.jpg", "loop.jpg", "unreadable"), ("nowhere.jpg", "gone", "not-found")):
        (folder / name).symlink_to(folder / target)
        wanted[str(folder / name)] = cause
    os.mkfifo(folder / "pipe.jpg")

    manifest = run(model, str(folder), tmp_path / "out")
    rows = rows_by_id(str(tmp_path / "out"))
    assert len(wanted) >= 1000
    assert set(rows) == set(wanted)
    assert manifest.books.num_listed == len(wanted)
    for name, cause in wanted.items():
        row = rows[name]
        if cause == "refused":
            assert row["cause"] in ("unsupported", "not-an-image"), (name, row["detail"])
        elif cause is not None:
            assert (row["cause"] or "ok") == cause, (name, row["detail"])
        assert (row["status"] == "rejected") == (row["cause"] in {*images.CAUSES, *fetch.CAUSES}), name
        assert (row["label"] is None) == (row["status"] == "rejected"), name
    turned = [rows[f"{folder}/turned-{each}.jpg"] for each in range(1, 9)]
    assert [(row["width"], row["height"]) for row in turned] == [(60, 40)] * 4 + [(40, 60)] * 4


def flipped(data: bytes, draw: random.Random) -> bytes:
    raw = bytearray(data)
    for _ in range(draw.randrange(1, 20)):
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return bytes(raw)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is huge."""
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    raw = bytearray(buffer.getvalue())
    raw[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    return bytes(raw)


def test_an_odd_zip(model: str, tmp_path: Path, jpeg_bytes: Callable[..., bytes]) -> None:
    path, good = tmp_path / "odd.zip", jpeg_bytes(0)
    names = ["good.jpg", "deep/er/good.jpg", "../above.jpg", "/absolute.jpg", "C:\\disk.jpg", "ümlaut.jpg",
             "damaged.jpg", "secret.jpg", "squeezed.jpg", "note.txt"]  # fmt: skip
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.mkdir("deep")
        for name in names:
            kind = zipfile.ZIP_BZIP2 if name == "squeezed.jpg" else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), b"a note" if name == "note.txt" else good, kind)
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "good.jpg")
        with archive.open("large.jpg", "w", force_zip64=True) as file:
            file.write(good)
    spoil(path, "damaged.jpg", "secret.jpg")
    manifest = run(model, str(path), tmp_path / "out")
    rows = {str(name).partition("!")[2]: row for name, row in rows_by_id(str(tmp_path / "out")).items()}
    assert set(rows) == {*names, "large.jpg"}
    bad = {name: row["cause"] for name, row in rows.items() if row["status"] == "rejected"}
    assert bad == {
        "damaged.jpg": "corrupt", "secret.jpg": "encrypted", "squeezed.jpg": "unsupported", "note.txt": "not-an-image"
    }  # fmt: skip
    assert manifest.books.num_ok == len(rows) - len(bad)


def spoil(path: Path, damaged: str, secret: str) -> None:
    """Flip a byte of one stored member, and say of another in both its headers that it is encrypted."""
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offsets = {info.filename: info.header_offset for info in archive.infolist()}
    raw[offsets[damaged] + 200] ^= 0xFF
    central = raw.find(secret.encode(), offsets[secret] + 60) - 46
    assert raw[central : central + 4] == b"PK\x01\x02"
    raw[central + 8] |= 1
    raw[offsets[secret] + 6] |= 1
    path.write_bytes(raw)


def test_a_zip_of_very_many_members_is_planned_and_its_ranges_are_read(tmp_path: Path) -> None:
    from fruitcnn.inputs import Listing
    from fruitcnn.plan import PlanReader, write_plan

    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(NUM_MEMBERS):
            archive.writestr(f"{number // 1000:03d}/{number}.jpg", str(number))
    plan = write_plan(str(tmp_path / "out"), Listing(str(path)), "m", {}, 2048, 10**9)
    assert plan.num_inputs == NUM_MEMBERS
    last = PlanReader(str(tmp_path / "out"), plan).read(plan.num_parts - 1)
    found = [each for start, stop in fetch.chunks(last, 0, len(last)) for each in fetch.fetch(last[start:stop])]
    assert [each.data for each in found] == [
        str(number).encode() for number in range((plan.num_parts - 1) * 2048, NUM_MEMBERS)
    ]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_an_odd_tar(
    model: str, tmp_path: Path, jpeg_bytes: Callable[..., bytes], ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRUITCNN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / f"odd.{ending}"
    long_name = "/".join(["folder"] * 40) + "/long.jpg"
    with tarfile.open(path, "w:gz" if ending == "tar.gz" else "w") as archive:
        for name in ("good.jpg", "../above.jpg", "/absolute.jpg", "ümlaut.jpg", long_name):
            add(archive, tarfile.TarInfo(name), jpeg_bytes(len(name)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            odd = tarfile.TarInfo(f"odd-{kind!r}.jpg")
            odd.type, odd.linkname = kind, "good.jpg"
            archive.addfile(odd)
        holes = tarfile.TarInfo("holes.jpg")
        holes.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,4,1000,4",
                             "GNU.sparse.size": "1004"}  # fmt: skip
        add(archive, holes, b"12345678")
        add(archive, tarfile.TarInfo("note.txt"), b"a note")
    manifest = run(model, str(path), tmp_path / "out")
    rows = {str(name).partition("!")[2]: row for name, row in rows_by_id(str(tmp_path / "out")).items()}
    assert set(rows) == {
        "good.jpg", "../above.jpg", "/absolute.jpg", "ümlaut.jpg", long_name, "holes.jpg", "note.txt"
    }  # fmt: skip
    assert manifest.books.rejected_by_cause == {"not-an-image": 1, "unsupported": 1}


def add(archive: tarfile.TarFile, info: tarfile.TarInfo, data: bytes) -> None:
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
