"""sources.py promises: the same records from every kind of source, nothing lost, clear words for wrong use."""

import importlib
import io
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruitcnn import kaggle_source, storage, synthetic
from fruitcnn.errors import UsageError
from fruitcnn.layout import FRAMES_PER_RUN, Listed, group_of, is_hidden, plain_records
from fruitcnn.sources import Record, Source, SourceError, open_source
from fruitcnn.storage_errors import StorageError
from tests.kaggle_stand_in import PORT, KaggleStandIn, kaggle_stand_in

CLASSES = ("Apple Red 1", "Pear", "Çilek")
FILES = {
    f"{split}/{name}/{prefix}{frame}_100.jpg": f"{split}{name}{prefix}{frame}".encode()
    for split, frames in (("Training", (0, 1, 3)), ("Test", (2, 10)))
    for name in CLASSES
    for prefix in ("", "r_")
    for frame in frames
}
SIDE_FILES = {
    "LICENSE": b"MIT",
    "readme.md": b"#",
    "Training/readme.md": b"#",
    "Training/Pear/.DS_Store": b"x",
    "Training/Pear/Thumbs.db": b"x",
    "papers/a.pdf": b"x",
}


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def pack(folder: Path, archive: Path) -> Path:
    """The folder's contents as .zip, .tar or .tar.gz."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            for name in names:
                out.write(folder / name, name)
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
            for name in names:
                tar.add(folder / name, str(name))
    return archive


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRUITCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", FILES | SIDE_FILES)


def contents(source: Source) -> dict[str, bytes]:
    return {record.path: source.read(record) for record in source.records}


# ---- every kind of source gives the same records


@pytest.mark.parametrize("kind", ["folder", "a.zip", "a.tar", "a.tar.gz"])
def test_folder_and_archives_hold_the_same_records(kind: str, tree: Path, tmp_path: Path) -> None:
    uri = tree if kind == "folder" else pack(tree, tmp_path / kind)
    source = open_source(str(uri))
    assert contents(source) == FILES
    assert source.records == open_source(str(tree)).records
    assert source.classes == sorted(CLASSES)
    assert source.num_ignored == len(SIDE_FILES)
    assert [record.path for record in source.records] == sorted(FILES)


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["prefix", "a.zip", "a.tar", "a.tar.gz"])
def test_an_s3_prefix_and_archives_on_s3_hold_the_same_records(
    kind: str, tree: Path, tmp_path: Path, s3_prefix: str
) -> None:
    uri = storage.join(s3_prefix, kind)
    if kind == "prefix":
        storage.upload_directory(tree, uri)
    else:
        storage.write(uri, pack(tree, tmp_path / kind).read_bytes())
    source = open_source(uri)
    assert source.records == open_source(str(tree)).records
    assert contents(source) == FILES


def test_record_fields(tree: Path) -> None:
    records = {record.path: record for record in open_source(str(tree)).records}
    path = "Test/Apple Red 1/r_2_100.jpg"
    assert records[path] == Record(path, "Apple Red 1", "test", "Apple Red 1/r_", len(FILES[path]))


def test_a_file_url_is_the_folder_it_names(tree: Path) -> None:
    assert open_source(f"file://{tree}").records == open_source(str(tree)).records


@pytest.mark.parametrize("where", ["", "fruits-360_dataset/fruits-360/", "a/b/c/d/"])
@pytest.mark.parametrize("names", [("Training", "Test"), ("train", "test"), ("TRAIN", "testing")])
def test_splits_are_found_at_any_depth_and_case(where: str, names: tuple[str, str], tmp_path: Path) -> None:
    renamed = {
        where + name.replace("Training", names[0], 1).replace("Test", names[1], 1): data for name, data in FILES.items()
    }
    source = open_source(str(write_tree(tmp_path / "tree", renamed)))
    assert Counter(record.split for record in source.records) == {"train": 18, "test": 12}
    assert all(record.path.startswith(names) for record in source.records)


def test_every_file_of_a_class_folder_is_a_record_whatever_its_ending(tmp_path: Path) -> None:
    odd = {"Training/Pear/notes.txt": b"x", "Test/Pear/no ending": b"x", "Training/Pear/deeper/1.png": b"x"}
    source = open_source(str(write_tree(tmp_path / "tree", FILES | odd)))
    assert odd.keys() <= {record.path for record in source.records}


@pytest.mark.parametrize(
    "path", [".git/x", "a/.DS_Store", "a/Thumbs.db", "__MACOSX/a/b.jpg", "a/desktop.ini", "a/.x/b"]
)
def test_hidden_and_system_files(path: str) -> None:
    assert is_hidden(path)


@pytest.mark.parametrize("path", ["a/b.jpg", "a.b/c", "a/thumbs.db.jpg", "my__MACOSX/a"])
def test_no_hidden_files(path: str) -> None:
    assert not is_hidden(path)


def test_sources_pickle_and_read_from_many_threads(tree: Path, tmp_path: Path) -> None:
    for uri in (tree, pack(tree, tmp_path / "a.zip"), pack(tree, tmp_path / "a.tar.gz"), "synthetic:2x12"):
        source = open_source(str(uri))
        again = pickle.loads(pickle.dumps(source))
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(again.read, again.records))
        assert read == [source.read(record) for record in source.records]


def test_a_machine_without_the_inflated_copy_makes_its_own(tree: Path, tmp_path: Path, own_cache: Path) -> None:
    pickled = pickle.dumps(open_source(str(pack(tree, tmp_path / "a.tar.gz"))))
    shutil.rmtree(own_cache)
    assert contents(pickle.loads(pickled)) == FILES


# ---- the fingerprint


def test_the_fingerprint_follows_paths_sizes_and_contents_of_archives(tree: Path, tmp_path: Path) -> None:
    folder, archive = str(tree), str(pack(tree, tmp_path / "a.zip"))
    first = {uri: open_source(uri).fingerprint for uri in (folder, archive)}
    os.utime(tree / "Training/Pear/0_100.jpg", (1, 1))
    assert open_source(folder).fingerprint == first[folder]
    one = tree / "Training/Pear/0_100.jpg"
    one.write_bytes(bytes(reversed(one.read_bytes())))
    assert open_source(folder).fingerprint == first[folder], "a folder's listing does not show it"
    assert open_source(str(pack(tree, tmp_path / "a.zip"))).fingerprint != first[archive]
    one.write_bytes(b"another size")
    assert open_source(folder).fingerprint != first[folder]


def test_records_are_the_same_in_another_process(tree: Path) -> None:
    code = "import sys; from fruitcnn.sources import open_source; print(open_source(sys.argv[1]).fingerprint)"
    shutil.rmtree(tree / "Test")
    shutil.move(tree / "Training", tree / "plain")
    for uri in (str(tree / "plain"), "synthetic:3x12"):
        out = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
        assert out.stdout.strip() == open_source(uri).fingerprint


# ---- groups, and the split of plain folders


@pytest.mark.parametrize(
    ("name", "group", "frame"),
    [
        ("0_100.jpg", "A/", 0),
        ("327_100.jpg", "A/", 327),
        ("r_17_100.jpg", "A/r_", 17),
        ("r2_17_100.jpg", "A/r2_", 17),
        ("r3_5_100.png", "A/r3_", 5),
        ("r0_103.jpg", "A/r0_", 103),
        ("IMG_0042.JPG", "A/IMG_", 42),
        ("42", "A/", 42),
        ("portrait.jpeg", "A/portrait", 0),
        ("deeper/r_1_100.jpg", "A/deeper/r_", 1),
    ],
)
def test_group_is_the_class_and_the_name_before_the_frame_number(name: str, group: str, frame: int) -> None:
    assert group_of(name, "A") == (group, frame)


def listing(num_frames: dict[tuple[str, str], int]) -> list[Listed]:
    """{(class, prefix): frames} as Listed files of plain class folders."""
    return [
        Listed(f"{label}/{prefix}{frame}_100.jpg", 1)
        for (label, prefix), count in num_frames.items()
        for frame in range(count)
    ]


frame_counts = st.dictionaries(
    st.tuples(st.sampled_from("ABC"), st.sampled_from(("", "r_", "r2_"))), st.integers(2, 200), min_size=1
)
fractions = st.floats(0.05, 0.5)


@given(frame_counts, fractions, st.integers(0, 9))
def test_a_plain_split_takes_every_file_once_and_gives_every_class_both_splits(
    counts: dict[tuple[str, str], int], fraction: float, seed: int
) -> None:
    files = listing(counts)
    records = plain_records(files, "", fraction, seed)
    assert sorted(record.path for record in records) == sorted(file.path for file in files)
    for label in {label for label, _ in counts}:
        assert {record.split for record in records if record.label == label} == {"train", "test"}


@given(frame_counts, fractions, st.integers(0, 9))
def test_a_plain_split_cuts_a_rotation_only_between_runs_of_frames(
    counts: dict[tuple[str, str], int], fraction: float, seed: int
) -> None:
    splits: dict[str, list[str]] = {}
    for record in sorted(
        plain_records(listing(counts), "", fraction, seed), key=lambda r: group_of(r.path.split("/")[1], r.label)[1]
    ):
        splits.setdefault(record.group, []).append(record.split)
    for frames in splits.values():
        num_cuts = sum(a != b for a, b in itertools.pairwise(frames))
        # One cut more where a class is small, so that a part of one run is held out.
        assert num_cuts <= -(-len(frames) // FRAMES_PER_RUN) + 1


@given(st.permutations(listing({("A", ""): 90, ("A", "r_"): 40, ("B", ""): 70})))
def test_a_plain_split_does_not_depend_on_the_order_of_the_listing(files: list[Listed]) -> None:
    assert set(plain_records(files, "", 0.2, 0)) == set(plain_records(sorted(files), "", 0.2, 0))


def test_a_file_keeps_its_split_when_the_source_grows() -> None:
    counts = {("A", ""): 320, ("A", "r_"): 320, ("B", ""): 320, ("B", "r_"): 320}
    before = {record.path: record.split for record in plain_records(listing(counts), "", 0.2, 0)}
    grown = counts | {("A", "r2_"): 200, ("B", ""): 500, ("C", ""): 320}
    after = {record.path: record.split for record in plain_records(listing(grown), "", 0.2, 0)}
    assert {path: after[path] for path in before} == before


def test_a_plain_split_holds_out_about_the_fraction_asked_for() -> None:
    files = listing({(f"class {n}", prefix): 164 for n in range(60) for prefix in ("", "r_")})
    for fraction in (0.1, 0.2, 0.4):
        records = plain_records(files, "", fraction, 0)
        share = sum(record.split == "test" for record in records) / len(records)
        assert share == pytest.approx(fraction, abs=0.04)
    assert plain_records(files, "", 0.2, 0) != plain_records(files, "", 0.2, 1)


@pytest.mark.parametrize("num_pictures", [2, 10, 33, 40, 100, 250])
def test_a_small_class_gives_the_share_asked_for(num_pictures: int) -> None:
    for prefix in ("IMG_", ""):
        records = plain_records(listing({("A", prefix): num_pictures, ("B", prefix): num_pictures}), "", 0.2, 0)
        for label in "AB":
            num_test = sum(record.label == label and record.split == "test" for record in records)
            assert num_test == max(1, round(0.2 * num_pictures))


def test_a_folder_per_class_is_split_here(tmp_path: Path) -> None:
    files = {f"wrapping/folder/{file.path}": b"x" for file in listing({("A", ""): 64, ("B", "r_"): 40})}
    source = open_source(str(write_tree(tmp_path / "tree", files)), test_fraction=0.25)
    assert source.classes == ["A", "B"]
    assert {record.split for record in source.records} == {"train", "test"}
    assert len(source.records) == 104
    assert source.records[0].path == "A/0_100.jpg"


# ---- wrong use: what was got, what was wanted, the next step


def two_data_sets() -> dict[str, bytes]:
    return {f"{size}/fruits-360/{name}": data for size in ("original", "100x100") for name, data in FILES.items()}


WRONG: dict[str, tuple[dict[str, bytes], str]] = {
    "empty": ({}, "is empty"),
    "hidden files only": ({"A/.DS_Store": b"x"}, "holds no files"),
    "one class only": ({"Training/A/1.jpg": b"x", "Test/A/2.jpg": b"x"}, r"one class only \('A'\).*at least two"),
    "one plain class": ({"A/1.jpg": b"x", "A/2.jpg": b"x"}, r"one class only"),
    "no class folders": ({"1.jpg": b"x", "2.jpg": b"x"}, "no class folders"),
    "no test folder": ({"fruits/Training/A/1.jpg": b"x", "fruits/Training/B/1.jpg": b"x"}, "--root 'fruits/Training'"),
    "training beside another": ({f"{a}/{b}/1.jpg": b"x" for a in ("train", "val") for b in "AB"}, "--root 'train'"),
    "several": (two_data_sets(), "'100x100/fruits-360', 'original/fruits-360'"),
    "a class without test pictures": (FILES | {"Training/Fig/0_100.jpg": b"x"}, "only in train: 'Fig'"),
    "a class without training pictures": (FILES | {"Test/Fig/0_100.jpg": b"x"}, "only in test: 'Fig'"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("kind", ["folder", "a.zip"])
def test_a_source_that_cannot_be_used_says_why(case: str, kind: str, tmp_path: Path) -> None:
    files, message = WRONG[case]
    folder = write_tree(tmp_path / "tree", files)
    folder.mkdir(exist_ok=True)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(folder if kind == "folder" else pack(folder, tmp_path / kind)))
    assert str(caught.value).startswith("--source: ")


def test_root_picks_one_of_several(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "tree", two_data_sets())
    for root in ("100x100/fruits-360", "original/fruits-360/", "100x100"):
        assert contents(open_source(str(folder), root=root)) == FILES
    with pytest.raises(SourceError, match="no files under --root elsewhere"):
        open_source(str(folder), root="elsewhere")


def test_root_may_name_a_split_to_be_split_here(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "tree", {f"Training/{f.path}": b"x" for f in listing({("A", ""): 9, ("B", ""): 9})})
    assert {record.split for record in open_source(str(folder), root="Training").records} == {"train", "test"}


def test_different_classes_are_allowed_when_told(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "tree", FILES | {"Training/Fig/0_100.jpg": b"x"})
    assert "Fig" in open_source(str(folder), allow_class_mismatch=True).classes


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/nowhere/at all", "does not exist; wanted a folder, .zip"),
        ("/nowhere/a.zip", "does not exist"),
        ("http://host/a.zip", "unknown scheme 'http'"),
        ("gs://bucket/x", "unknown scheme 'gs'"),
        ("kagle:a/b", "unknown scheme 'kagle'"),
        ("kaggle:fruits", "wanted kaggle:OWNER/NAME"),
        ("kaggle:../../etc/x", "wanted kaggle:OWNER/NAME"),
        ("synthetic:12", "wanted synthetic or synthetic:CLASSESxFRAMES"),
        ("synthetic:1x60", "at least 2 classes"),
        ("synthetic:12x3", "frames a class"),
    ],
)
def test_a_uri_that_names_no_source_says_what_was_wanted(uri: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(uri)


def test_a_file_that_is_no_archive_is_refused(tree: Path) -> None:
    with pytest.raises(SourceError, match="is not an archive that can be read"):
        open_source(str(tree / "LICENSE"))


def test_a_zip_that_is_cut_off_is_refused_with_the_next_step(tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "a.zip")
    archive.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(SourceError, match=r"a\.zip .*cut off.*download it again"):
        open_source(str(archive))


def test_an_archive_that_leads_out_of_its_root_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in (*FILES, "Training/Pear/../../../up.jpg"):
            archive.writestr(name, b"x")
    with pytest.raises(SourceError, match="unsafe member name"):
        open_source(str(tmp_path / "a.zip"))


def test_a_damaged_member_is_a_source_error_of_its_own(tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "a.zip")
    source = open_source(str(archive))
    with zipfile.ZipFile(archive) as packed:
        info = packed.getinfo("Training/Pear/r_3_100.jpg")
    data = bytearray(archive.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + 2] ^= 0xFF
    archive.write_bytes(data)
    broken = [record for record in source.records if _fails(source, record)]
    assert [record.path for record in broken] == ["Training/Pear/r_3_100.jpg"]


def _fails(source: Source, record: Record) -> bool:
    try:
        source.read(record)
    except SourceError:
        return True
    return False


def test_source_errors_are_wrong_usage() -> None:
    assert issubclass(SourceError, UsageError)
    assert issubclass(SourceError, ValueError)


# ---- drawn fruit


def test_synthetic_is_laid_out_as_fruits_360() -> None:
    source = open_source("synthetic:6x48")
    assert len(source.classes) == 6
    assert Counter(record.split for record in source.records) == {"train": 6 * 36, "test": 6 * 12}
    record = next(record for record in source.records if record.path.startswith("Test/Apple Red 1/r_"))
    assert record == Record(record.path, "Apple Red 1", "test", "Apple Red 1/r_", synthetic.NOMINAL_JPEG_BYTES)
    frame = int(record.path.split("_")[1])
    assert source.read(record) == synthetic.frame_jpeg("Apple Red 1", "r_", frame, 16, seed=0)


def test_synthetic_depends_on_its_size_and_seed() -> None:
    fingerprints = {
        open_source(uri, seed=seed).fingerprint for uri in ("synthetic:2x12", "synthetic:2x24") for seed in (0, 1)
    }
    assert len(fingerprints) == 4
    default = f"synthetic:{synthetic.DEFAULT_NUM_CLASSES}x{synthetic.DEFAULT_NUM_FRAMES}"
    assert open_source("synthetic").fingerprint == open_source(default).fingerprint


# ---- Fruits-360


@pytest.mark.fruits
def test_the_fruits_360_sample(fruits_zip: Path) -> None:
    source = open_source(str(fruits_zip))
    assert Counter(record.split for record in source.records) == {"train": 15_409, "test": 5_194}
    assert len(source.classes) == 120
    assert source.num_ignored == 1
    assert {record.group.rpartition("/")[2] for record in source.records} == {"", "r_", "r2_", "r3_"}
    assert source.read(source.records[0])[:2] == b"\xff\xd8"


# ---- Kaggle, against a stand-in at localhost


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleStandIn]:
    """The stand-in, with nobody signed in; kagglesdk is pointed at it."""
    for variable in [each for each in os.environ if each.startswith("KAGGLE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home" / "kaggle"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setattr(kaggle_source, "_FIRST_PAUSE_SECONDS", 0.005)
    (tmp_path / "home").mkdir()
    with redirect_stdout(io.StringIO()):
        importlib.import_module("kaggle")  # signs in at kaggle.com: here, where there is nothing to send
    with kaggle_stand_in() as server:
        yield server


@pytest.fixture
def fruits(tmp_path: Path) -> bytes:
    """A zip of some 600 kB in Kaggle's layout."""
    noise = np.random.default_rng(0)
    files = {f"fruits-360/{name}": noise.bytes(20_000) for name in FILES}
    return pack(write_tree(tmp_path / "kaggle tree", files), tmp_path / "kaggle.zip").read_bytes()


def test_kaggle_downloads_public_data_without_a_token(kaggle: KaggleStandIn, fruits: bytes, own_cache: Path) -> None:
    kaggle.public["moltean/fruits"] = fruits
    source = open_source("kaggle:moltean/fruits")
    assert [record.path for record in source.records] == sorted(FILES)
    assert len(source.read(source.records[0])) == 20_000
    assert (own_cache / "kaggle/moltean/fruits.zip").read_bytes() == fruits
    assert not list(own_cache.rglob("*.part"))


def test_kaggle_sends_no_token_where_none_is_needed(
    kaggle: KaggleStandIn, fruits: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kaggle.public["moltean/fruits"] = fruits
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_secret")
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    open_source("kaggle:moltean/fruits")
    assert kaggle.requests
    assert {sent for _, _, sent in kaggle.requests} == {None}


def test_kaggle_downloads_once_and_again_when_kaggle_has_another_version(
    kaggle: KaggleStandIn, fruits: bytes, tmp_path: Path, own_cache: Path
) -> None:
    kaggle.public["moltean/fruits"] = fruits
    first = open_source("kaggle:moltean/fruits")
    stamp = (own_cache / "kaggle/moltean/fruits.zip").stat().st_mtime_ns
    assert open_source("kaggle:moltean/fruits").fingerprint == first.fingerprint
    assert (own_cache / "kaggle/moltean/fruits.zip").stat().st_mtime_ns == stamp
    kaggle.public["moltean/fruits"] = pack(write_tree(tmp_path / "new", FILES), tmp_path / "new.zip").read_bytes()
    assert open_source("kaggle:moltean/fruits").fingerprint != first.fingerprint


def test_kaggle_interrupted_in_the_middle_goes_on_from_there(
    kaggle: KaggleStandIn, fruits: bytes, own_cache: Path
) -> None:
    kaggle.public["moltean/fruits"] = fruits
    kaggle.cut_after_bytes = [3 << 16]
    open_source("kaggle:moltean/fruits")
    assert kaggle.ranges() == [None, None, "bytes=196608-"]
    assert (own_cache / "kaggle/moltean/fruits.zip").read_bytes() == fruits


def test_kaggle_stopped_keeps_what_came_and_the_next_run_resumes(
    kaggle: KaggleStandIn, fruits: bytes, own_cache: Path
) -> None:
    kaggle.public["moltean/fruits"] = fruits
    kaggle.cut_after_bytes = [4 << 16] + [0] * 40
    with pytest.raises(
        StorageError, match=r"kaggle:moltean/fruits: .*262,144 bytes are kept, the same command resumes"
    ):
        open_source("kaggle:moltean/fruits")
    assert not (own_cache / "kaggle/moltean/fruits.zip").exists()
    kaggle.cut_after_bytes, kaggle.requests = [], []
    open_source("kaggle:moltean/fruits")
    assert kaggle.ranges() == [None, "bytes=262144-"]
    assert (own_cache / "kaggle/moltean/fruits.zip").read_bytes() == fruits


def test_kaggle_never_joins_two_versions(kaggle: KaggleStandIn, fruits: bytes, own_cache: Path) -> None:
    kaggle.public["moltean/fruits"] = fruits
    kaggle.cut_after_bytes = [4 << 16] + [0] * 40
    with pytest.raises(StorageError):
        open_source("kaggle:moltean/fruits")
    changed = fruits[:100] + bytes([fruits[100] ^ 1]) + fruits[101:]
    kaggle.cut_after_bytes, kaggle.public["moltean/fruits"] = [], changed
    open_source("kaggle:moltean/fruits")
    assert (own_cache / "kaggle/moltean/fruits.zip").read_bytes() == changed


def test_a_cached_copy_of_the_wrong_size_is_not_used(kaggle: KaggleStandIn, fruits: bytes, own_cache: Path) -> None:
    kaggle.public["moltean/fruits"] = fruits
    open_source("kaggle:moltean/fruits")
    cached = own_cache / "kaggle/moltean/fruits.zip"
    cached.write_bytes(fruits[:-1_000])
    open_source("kaggle:moltean/fruits")
    assert cached.read_bytes() == fruits


def test_without_a_network_the_cached_copy_serves(
    kaggle: KaggleStandIn, fruits: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kaggle.public["moltean/fruits"] = fruits
    fingerprint = open_source("kaggle:moltean/fruits").fingerprint
    kaggle.status = 503
    assert open_source("kaggle:moltean/fruits").fingerprint == fingerprint
    assert "using the copy in" in caplog.text


def test_kaggle_out_of_service_is_a_storage_error(kaggle: KaggleStandIn) -> None:
    kaggle.status = 503
    with pytest.raises(StorageError, match="kaggle:moltean/fruits: answers with status 503"):
        open_source("kaggle:moltean/fruits")


def test_kaggle_has_no_such_data_set(kaggle: KaggleStandIn) -> None:
    with pytest.raises(SourceError, match="Kaggle has no data set 'moltean/friuts'"):
        open_source("kaggle:moltean/friuts")


def test_a_private_data_set_without_a_token_says_how_to_sign_in(
    kaggle: KaggleStandIn, fruits: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.private["someone/secret-fruits"] = fruits
    with pytest.raises(SourceError, match=r"it is private, or the name is wrong.*KAGGLE_API_TOKEN"):
        open_source("kaggle:someone/secret-fruits")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("way", ["token", "legacy key"])
def test_a_private_data_set_opens_with_the_token_kaggles_client_finds(
    way: str, kaggle: KaggleStandIn, fruits: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.private["someone/secret-fruits"] = fruits
    kaggle.tokens = {"s3cr3t-t0ken"}
    if way == "token":
        monkeypatch.setenv("KAGGLE_API_TOKEN", "s3cr3t-t0ken")
    else:
        monkeypatch.setenv("KAGGLE_USERNAME", "someone")
        monkeypatch.setenv("KAGGLE_KEY", "s3cr3t-t0ken")
    assert len(open_source("kaggle:someone/secret-fruits").records) == len(FILES)
    assert "s3cr3t" not in "".join(capsys.readouterr())


def test_a_token_that_is_refused_is_not_shown(
    kaggle: KaggleStandIn, fruits: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.private["someone/secret-fruits"] = fruits
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", "s3cr3t-t0ken")
    with pytest.raises(SourceError, match="refuses kaggle:someone/secret-fruits to your account") as caught:
        open_source("kaggle:someone/secret-fruits")
    assert "s3cr3t" not in str(caught.value) + "".join(capsys.readouterr())


def test_what_is_no_zip_does_not_enter_the_cache(kaggle: KaggleStandIn, own_cache: Path) -> None:
    kaggle.public["moltean/fruits"] = b"<html>sign in</html>" * 100
    with pytest.raises(SourceError, match="not a whole zip"):
        open_source("kaggle:moltean/fruits")
    assert not list(own_cache.rglob("fruits.zip")) + list(own_cache.rglob("*.part"))


def test_the_stand_in_is_where_kagglesdk_looks(kaggle: KaggleStandIn) -> None:
    from kagglesdk.kaggle_env import get_endpoint, get_env

    assert get_endpoint(get_env()) == f"http://localhost:{PORT}"
