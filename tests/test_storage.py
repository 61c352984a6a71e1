"""storage.py: the same promises on a local folder and on a real S3 server; then each backend's own faults."""

import itertools
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_server import SLOW_DOWN, Answer, fault_server
from hypothesis import given
from hypothesis import strategies as st

from cluster.local_s3 import LocalS3
from fruitcnn import storage, storage_clients, storage_s3
from tests.disks import disk

ODD_NAMES = [
    "a b.jpg",
    "bang!x.jpg",
    "class=1.jpg",
    "#1.jpg",
    "100%.jpg",
    "%41.jpg",
    "é ü 果.jpg",
    "a+b&c?d.jpg",
    "~'().jpg",
]


def everything_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(getattr(error, "cause", ""))


# Both backends


def test_written_bytes_are_read_back_and_replaced(any_prefix: str) -> None:
    uri = storage.join(any_prefix, "a", "b.bin")
    storage.write(uri, b"one")
    assert storage.read(uri) == b"one"
    storage.write(uri, b"")
    assert storage.read(uri) == b""
    assert storage.size_bytes(uri) == 0


def test_odd_names_round_trip(any_prefix: str) -> None:
    uris = [storage.join(any_prefix, "odd dir#%20", each) for each in ODD_NAMES]
    for uri in uris:
        storage.write(uri, uri.encode())
    assert sorted(storage.list_files(any_prefix)) == sorted((uri, len(uri.encode())) for uri in uris)
    assert [storage.read(uri) for uri in uris] == [uri.encode() for uri in uris]
    storage.delete(uris[0])
    assert not storage.exists(uris[0])
    assert storage.exists(uris[1])


@pytest.mark.parametrize(("start", "length"), [(0, 4), (2, 3), (6, 4), (8, 100), (10, 1), (50, 1), (3, 0)])
def test_ranges_are_slices(any_prefix: str, start: int, length: int) -> None:
    uri = storage.join(any_prefix, "digits")
    storage.write(uri, b"0123456789")
    assert storage.read_range(uri, start, length) == b"0123456789"[start : start + length]


def test_put_if_absent_has_one_winner_among_16_threads_and_its_content_is_whole(any_prefix: str) -> None:
    uri = storage.join(any_prefix, "log", "000001.json")
    contents = [bytes([65 + i]) * 50_000 for i in range(16)]
    barrier = threading.Barrier(16)

    def contend(content: bytes) -> bool:
        barrier.wait()
        return storage.put_if_absent(uri, content)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(contend, contents))
    assert won.count(True) == 1
    assert storage.read(uri) == contents[won.index(True)]
    assert [each.uri for each in storage.list_files(any_prefix)] == [uri]


def test_put_if_absent_leaves_what_is_there(any_prefix: str) -> None:
    uri = storage.join(any_prefix, "x")
    storage.write(uri, b"old")
    assert not storage.put_if_absent(uri, b"new")
    assert storage.read(uri) == b"old"


def test_json_is_stable_and_says_when_it_is_none(any_prefix: str) -> None:
    uri = storage.join(any_prefix, "x.json")
    storage.write_json(uri, {"b": [1, 2.5, None], "a": "é\udcff"})
    first = storage.read(uri)
    storage.write_json(uri, dict(reversed(list(storage.read_json(uri).items()))))
    assert storage.read(uri) == first
    assert first.startswith(b'{\n "a"')
    assert first.endswith(b"\n")
    storage.write(uri, b'{"a": ')
    with pytest.raises(storage.StorageError, match="not JSON"):
        storage.read_json(uri)


def test_what_is_not_there_lists_nothing_deletes_quietly_and_is_named_when_read(any_prefix: str) -> None:
    uri = storage.join(any_prefix, "missing.bin")
    assert storage.is_empty(any_prefix)
    assert not storage.exists(uri)
    storage.delete(uri)
    storage.delete_prefix(any_prefix)
    for call in (storage.read, storage.size_bytes, lambda each: storage.read_range(each, 0, 1), storage.read_json):
        with pytest.raises(storage.NotFoundError, match=r"missing\.bin") as caught:
            call(uri)
        assert caught.value.uri == uri


def test_a_folder_is_no_file(any_prefix: str) -> None:
    storage.write(storage.join(any_prefix, "folder.jpg", "x"), b"x")
    assert not storage.exists(storage.join(any_prefix, "folder.jpg"))
    with pytest.raises(storage.StorageError, match=r"folder\.jpg"):
        storage.read(storage.join(any_prefix, "folder.jpg"))
    assert storage.is_empty(storage.join(any_prefix, "folder.jpg", "x"))


def test_a_prefix_ends_at_a_slash(any_prefix: str) -> None:
    for each in ("run/a", "run/b/c", "run2/a", "ru"):
        storage.write(storage.join(any_prefix, each), b"x")
    run = storage.join(any_prefix, "run")
    assert sorted(storage.list_files(run)) == [(f"{run}/a", 1), (f"{run}/b/c", 1)]
    storage.delete_prefix(run)
    assert storage.is_empty(run)
    assert len(list(storage.list_files(any_prefix))) == 2


def test_directories_go_up_and_come_down_unchanged(any_prefix: str, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    files = {f"d{i % 3}/{name}": os.urandom(i * 1000) for i, name in enumerate(ODD_NAMES)}
    files["big.bin"] = os.urandom(6 << 20)  # more than one part of a multipart upload
    for name, data in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    storage.upload_directory(source, any_prefix)
    storage.download_directory(any_prefix, back)
    found = {str(path.relative_to(back)): path.read_bytes() for path in back.rglob("*") if path.is_file()}
    assert found == files


def test_copying_nothing_is_an_error(any_prefix: str, tmp_path: Path) -> None:
    with pytest.raises(storage.NotFoundError, match="no files"):
        storage.download_directory(any_prefix, tmp_path / "x")
    with pytest.raises(storage.NotFoundError, match="no files"):
        storage.upload_directory(tmp_path / "none", any_prefix)


def test_download_writes_nothing_through_a_link_that_leads_out(any_prefix: str, tmp_path: Path) -> None:
    storage.write(storage.join(any_prefix, "sub", "x"), b"x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "down").mkdir()
    (tmp_path / "down" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(storage.StorageError, match="outside"):
        storage.download_directory(any_prefix, tmp_path / "down")
    assert list((tmp_path / "outside").iterdir()) == []


def test_parquet_round_trips_through_the_pyarrow_filesystem(any_prefix: str) -> None:
    uri = storage.join(any_prefix, "part 0.parquet")
    table = pa.table({"x": list(range(1000))})
    if not storage.is_s3(uri):
        Path(any_prefix).mkdir()
    filesystem, path = storage.parquet_filesystem(uri)
    pq.write_table(table, path, filesystem=filesystem)
    assert pq.read_table(path, filesystem=filesystem).equals(table)
    assert storage.read(uri)[:4] == b"PAR1"


def test_a_long_listing_is_complete(any_prefix: str) -> None:
    num_files = 1200 if storage.is_s3(any_prefix) else 5000  # S3: more than one page
    uris = [storage.join(any_prefix, f"d{i % 5}", f"{i:07d}.jpg") for i in range(num_files)]
    with ThreadPoolExecutor(16 if storage.is_s3(any_prefix) else 1) as pool:
        list(pool.map(lambda uri: storage.write(uri, b"x"), uris))
    assert sorted(storage.list_files(any_prefix)) == sorted((uri, 1) for uri in uris)
    if not storage.is_s3(any_prefix):  # for S3 see the endless listing
        assert _peak_bytes(storage.list_files(any_prefix)) < 100_000


def _peak_bytes(listing: Iterator[storage.Entry]) -> int:
    tracemalloc.start()
    try:
        deque(listing, maxlen=0)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# URIs


@pytest.mark.parametrize(
    ("given_uri", "normal"),
    [
        ("/a/b/", "/a/b"),
        ("/a/./b/../c", "/a/c"),
        ("file:///a%20b/%C3%A9", "/a b/é"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/x%20y/#z/", "s3://bucket/x%20y/#z"),
        ("rel", str(Path.cwd() / "rel")),
    ],
)
def test_normal_forms(given_uri: str, normal: str) -> None:
    assert storage.normalise(given_uri) == normal
    assert storage.normalise(normal) == normal


@pytest.mark.parametrize(
    "wrong", ["", "gs://b/x", "s3a://b/x", "s3:b/x", "s3://", "s3:///x", "s3://B ucket/x", "file://host/x", "a\0b"]
)
def test_wrong_uris_are_refused_as_usage_errors(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/prefix|file:///") as caught:
        storage.normalise(wrong)
    assert isinstance(caught.value, storage.InvalidUriError)


@given(st.lists(st.text("ab %é", min_size=1), min_size=1, max_size=4))
def test_joined_names_come_apart_again(parts: list[str]) -> None:
    for base in ("/base", "s3://bucket", "s3://bucket/p"):
        assert storage.join(base, *parts) == base + "/" + "/".join(parts)
        assert storage.name(storage.join(base, *parts)) == parts[-1]


def test_join_does_not_climb() -> None:
    with pytest.raises(storage.InvalidUriError, match=r"\.\."):
        storage.join("/base", "../etc/passwd")
    assert storage.join("/base", "/etc/passwd") == "/base/etc/passwd"


def test_errors_survive_pickling_and_print_any_name() -> None:
    error = pickle.loads(pickle.dumps(storage.NotFoundError("/x/\udcff", "gone")))
    assert (type(error), error.uri, error.cause) == (storage.NotFoundError, "/x/\udcff", "gone")
    assert str(error).encode() == b"/x/\\udcff: gone"


# Local folders


def test_local_names_need_not_be_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    storage.write(storage.join(str(tmp_path), name), b"x")
    (entry,) = storage.list_files(str(tmp_path))
    assert os.fsencode(entry.uri).endswith(b"caf\xe9.jpg")
    assert storage.read(entry.uri) == b"x"
    storage.upload_directory(tmp_path, str(tmp_path.parent / "copy"))
    assert storage.exists(str(tmp_path.parent / "copy" / name))
    with pytest.raises(storage.InvalidUriError):
        storage.parquet_filesystem(entry.uri)


def test_local_listing_follows_links_but_no_loops_and_skips_what_is_no_file(tmp_path: Path) -> None:
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    (tree / "a" / "walked.jpg").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "far").write_bytes(b"far")
    (tree / "a" / "walked.jpg" / "real").write_bytes(b"1")
    (tree / "linked-file").symlink_to(elsewhere / "far")
    (tree / "linked-folder").symlink_to(elsewhere)
    for link, target in (("a/up", tree), ("self", "self"), ("dangling", "nowhere"), ("top", "/"), ("a/here", ".")):
        (tree / link).symlink_to(target)
    os.mkfifo(tree / "pipe")
    found = {each.uri.removeprefix(f"{tree}/"): each.size_bytes for each in storage.list_files(str(tree))}
    assert found == {"a/walked.jpg/real": 1, "linked-file": 3, "linked-folder/far": 3}
    listed = storage.list_files(str(tree), broken_links=True)
    everything = {each.uri.removeprefix(f"{tree}/"): each.size_bytes for each in listed}
    assert everything == found | {"self": -1, "dangling": -1}


def test_delete_prefix_removes_links_and_not_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "x").write_bytes(b"x")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "keep")
    storage.delete_prefix(str(tmp_path / "gone"))
    assert not (tmp_path / "gone").exists()
    assert (tmp_path / "keep" / "x").exists()


def test_whole_stores_are_not_deleted(s3: LocalS3) -> None:
    for uri in ("/", f"s3://{s3.bucket}", f"s3://{s3.bucket}/"):
        with pytest.raises(storage.StorageError, match="refusing"):
            storage.delete_prefix(uri)


def test_local_put_if_absent_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: storage.put_if_absent(str(tmp_path / "x"), b"%d" % i), range(16)))
    assert won.count(True) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"%d" % won.index(True)


def test_a_reader_never_sees_a_half_written_file(tmp_path: Path) -> None:
    uri, contents = str(tmp_path / "x"), [b"a" * 2_000_000, b"b" * 2_000_000]
    storage.write(uri, contents[0])
    stop = threading.Event()

    def rewrite() -> None:
        for content in itertools.cycle(contents):
            if stop.is_set():
                return
            storage.write(uri, content)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        assert all(storage.read(uri) in contents for _ in range(50))
    finally:
        stop.set()
        writer.join()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(storage.StorageError, match="file/below"):
        storage.write(str(tmp_path / "file" / "below"), b"x")
    with pytest.raises(storage.StorageError, match="file name too long"):
        storage.write(str(tmp_path / ("n" * 300)), b"x")


def test_a_place_that_can_be_written_is_left_as_it_was(any_prefix: str) -> None:
    storage.require_writable(storage.join(any_prefix, "deep/down/x"))
    assert storage.is_empty(any_prefix)
    storage.write(storage.join(any_prefix, "x"), b"old")
    storage.require_writable(storage.join(any_prefix, "x"))
    assert storage.read(storage.join(any_prefix, "x")) == b"old"


@pytest.mark.fault
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, read_only: Path) -> None:
    with pytest.raises(storage.PermissionDeniedError, match="read-only/a/x: read-only file system: name another"):
        storage.require_writable(str(read_only / "a" / "x"))
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(storage.NotFoundError, match="file/x: a file lies where its folder would be: name"):
        storage.require_writable(str(tmp_path / "file" / "x"))


@pytest.mark.s3
@pytest.mark.fault
def test_a_bucket_that_cannot_be_written_is_named_and_one_without_deletes_is_not(
    s3: LocalS3, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: Answer = (403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
    for method in ("PUT", "DELETE"):
        with fault_server(lambda _, asked, __, no=method: refused if asked == no else None, s3.endpoint_url) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
            if method == "DELETE":
                storage.require_writable(f"{s3_prefix}/x")
                continue
            with pytest.raises(storage.PermissionDeniedError, match="refused .AccessDenied"):
                storage.require_writable(f"{s3_prefix}/x")


@pytest.mark.fault
def test_a_full_disk_is_named_and_leaves_no_litter(any_prefix: str, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=64k") as full:
        storage.write(str(full / "old"), b"old")
        for put in (storage.write, storage.put_if_absent):
            with pytest.raises(storage.StorageError, match="no space left") as caught:
                put(str(full / "new"), b"x" * 200_000)
            assert str(full / "new") in str(caught.value)
        storage.write(storage.join(any_prefix, "big"), b"x" * 200_000)
        with pytest.raises(storage.StorageError, match="no space left") as caught:
            storage.download_directory(any_prefix, full)
        assert str(full / "big") in str(caught.value)
        assert [path.name for path in full.iterdir()] == ["old"]


# S3 alone


@pytest.mark.s3
@pytest.mark.fault
def test_a_wrong_key_is_refused_with_a_hint_and_no_secret(s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "Wr0ngSecretThatNobodyMaySee/1234567890"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    uri = storage.join(s3_prefix, "x")
    calls = [
        lambda: storage.read(uri), lambda: storage.exists(uri), lambda: storage.write(uri, b"x"),
        lambda: storage.put_if_absent(uri, b"x"), lambda: list(storage.list_files(s3_prefix)),
        lambda: storage.delete(uri), lambda: storage.delete_prefix(s3_prefix),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(storage.PermissionDeniedError, match="AWS_SECRET_ACCESS_KEY") as caught:
            call()
        assert s3_prefix in str(caught.value)
        assert secret not in everything_said(caught.value)


@pytest.mark.s3
def test_no_credentials_and_an_unknown_profile_are_named(s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(storage.PermissionDeniedError, match="no-such-profile"):
        storage.read(storage.join(s3_prefix, "x"))
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for call in (storage.read, storage.parquet_filesystem):
        with pytest.raises(storage.PermissionDeniedError, match="credentials"):
            call(storage.join(s3_prefix, "x"))


@pytest.mark.s3
def test_a_profile_in_a_file_is_enough(
    s3: LocalS3, s3_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_text(f"[fruit]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "fruit")
    uri = storage.join(s3_prefix, "x")
    storage.write(uri, b"x")
    filesystem, path = storage.parquet_filesystem(uri)
    assert filesystem.open_input_file(path).read() == b"x"


@pytest.mark.s3
@pytest.mark.fault
def test_a_missing_bucket_is_named(s3: LocalS3) -> None:
    uri = "s3://no-such-bucket/x/y"
    calls = [
        lambda: storage.read(uri), lambda: storage.size_bytes(uri), lambda: storage.write(uri, b"x"),
        lambda: storage.put_if_absent(uri, b"x"), lambda: list(storage.list_files(uri)), lambda: storage.is_empty(uri),
        lambda: storage.delete(uri), lambda: storage.delete_prefix(uri),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(storage.NotFoundError, match="no bucket named no-such-bucket"):
            call()


@pytest.mark.s3
def test_a_bucket_is_no_file(s3: LocalS3) -> None:
    assert not storage.exists(f"s3://{s3.bucket}")
    for call in (storage.read, lambda uri: storage.write(uri, b"x"), lambda uri: storage.put_if_absent(uri, b"x")):
        with pytest.raises(storage.NotFoundError, match="whole bucket"):
            call(f"s3://{s3.bucket}")


@pytest.mark.s3
@pytest.mark.parametrize("endpoint", ["localhost:8333", "http://", "https://:80", "ftp://x"])
def test_half_an_endpoint_is_refused(s3: LocalS3, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for call in (storage.read, storage.parquet_filesystem):
        with pytest.raises(storage.StorageError, match="AWS_ENDPOINT_URL"):
            call(f"s3://{s3.bucket}/x")


@pytest.mark.s3
def test_folder_markers_are_no_files_and_empty_objects_are(s3: LocalS3, s3_prefix: str) -> None:
    import boto3

    client, prefix = boto3.client("s3"), storage_s3.split(s3_prefix)[1]
    for key in ("dir/", "full/", "full/x", "empty.jpg"):
        client.put_object(Bucket=s3.bucket, Key=f"{prefix}/{key}", Body=b"")
    found = sorted(each.uri.removeprefix(f"{s3_prefix}/") for each in storage.list_files(s3_prefix))
    assert found == ["empty.jpg", "full/x"]


def _refusing_endpoint() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.s3
@pytest.mark.fault
def test_a_refused_connection_fails_within_ten_seconds(s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = _refusing_endpoint()
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    calls = [lambda: storage.read(f"{s3_prefix}/x"), lambda: list(storage.list_files(s3_prefix)),
             lambda: storage.put_if_absent(f"{s3_prefix}/x", b"x")]  # fmt: skip
    started = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(call) for call in calls]
        for future in futures:
            with pytest.raises(storage.UnavailableError, match="connection refused") as caught:
                future.result()
            assert endpoint in str(caught.value)
    assert time.monotonic() - started < 10


@pytest.mark.s3
@pytest.mark.fault
def test_two_slow_downs_are_ridden_out(s3: LocalS3, s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write(f"{s3_prefix}/x", b"x")
    calls = [lambda: storage.read(f"{s3_prefix}/x"), lambda: [each.uri for each in storage.list_files(s3_prefix)],
             lambda: storage.put_if_absent(f"{s3_prefix}/new", b"n")]  # fmt: skip
    for call, expected in zip(calls, (b"x", [f"{s3_prefix}/x"], True), strict=True):
        with fault_server(lambda number, *_: SLOW_DOWN if number <= 2 else None, s3.endpoint_url) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
            assert call() == expected
            assert proxy.num_requests == 3


@pytest.mark.s3
@pytest.mark.fault
def test_throttling_is_outlasted_beyond_the_clients_own_retries_and_then_said(
    s3: LocalS3, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(f"{s3_prefix}/x", b"x")
    monkeypatch.setattr(storage_clients, "_RETRIES", {"max_retries": 1})
    with fault_server(lambda number, *_: SLOW_DOWN if number <= 3 else None, s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        assert storage.read(f"{s3_prefix}/x") == b"x"
    monkeypatch.setattr(storage_s3, "BUSY_SECONDS", 0.0)
    with fault_server(lambda *_: SLOW_DOWN) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        for call in (lambda: storage.read(f"{s3_prefix}/x"), lambda: storage.is_empty(s3_prefix)):
            with pytest.raises(storage.UnavailableError, match="SlowDown"):
                call()


@pytest.mark.s3
@pytest.mark.fault
def test_two_conditional_writes_that_met_are_tried_again(
    s3: LocalS3, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conflict: Answer = (409, b"<Error><Code>ConditionalRequestConflict</Code><Message>retry</Message></Error>")
    with fault_server(lambda number, *_: conflict if number == 1 else None, s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        assert storage.put_if_absent(f"{s3_prefix}/x", b"x")


def _page(page: int, keys: list[str], truncated: bool) -> bytes:
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag>"
        "<Size>1</Size></Contents>"
        for key in keys
    )
    token = f"<NextContinuationToken>{page + 1}</NextContinuationToken>"
    head = f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{token if truncated else ''}"
    return f"<ListBucketResult>{head}{contents}</ListBucketResult>".encode()


@pytest.mark.s3
def test_an_endless_listing_gives_its_first_keys_at_once(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(number: int, *_: str) -> Answer:
        return 200, _page(number, [f"p/{number:05d}/{i:04d}" for i in range(1000)], True)

    with fault_server(endless) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)
        first = [each.uri for each in itertools.islice(storage.list_files("s3://endless/p"), 5000)]
        assert len(set(first)) == 5000
        assert server.num_requests < 10
        few = _peak_bytes(itertools.islice(storage.list_files("s3://endless/p"), 3000))
        many = _peak_bytes(itertools.islice(storage.list_files("s3://endless/p"), 20_000))
        assert many < 1.2 * few


@pytest.mark.s3
def test_keys_that_obstore_cannot_name_are_listed_and_read(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = sorted(["p/a", "p//b", "p/../c", "p/x&#9;y", "p/./d", "p/e", "p/z/", "p/zz"])

    def answer(_number: int, _method: str, path: str) -> Answer:
        query = parse_qs(urlsplit(path).query)
        if "list-type" not in query:
            return 200, unquote(urlsplit(path).path).encode()
        after = query.get("start-after", [""])[0].replace("\t", "&#9;")
        return 200, _page(1, [key for key in keys if key > after], False)

    with fault_server(answer) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)
        found = [each.uri for each in storage.list_files("s3://odd/p")]
        assert sorted(found) == sorted("s3://odd/" + key.replace("&#9;", "\t") for key in keys)
        assert storage.read("s3://odd/p//b") == b"/odd/p//b"
        assert storage.read_range("s3://odd/p/../c", 1, 3) == b"odd"
        with pytest.raises(storage.InvalidUriError, match="can only be read"):
            storage.write("s3://odd/p//b", b"")


@pytest.mark.s3
def test_a_client_is_kept_per_process_and_follows_the_environment(
    s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = storage_clients.client_of(s3_prefix)
    assert storage_clients.client_of(f"{s3_prefix}/other") is client
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    assert storage_clients.client_of(s3_prefix) is not client


@pytest.mark.s3
@pytest.mark.fault
def test_a_forked_process_is_told_so_instead_of_hanging(s3_prefix: str) -> None:
    script = """if True:
        import os, sys
        from fruitcnn import storage
        storage.write(sys.argv[1], b"x")
        if os.fork() == 0:
            try:
                storage.read(sys.argv[1])
            except storage.StorageError as error:
                print(error, flush=True)
            os._exit(0)
        os.wait()
        print(storage.read(sys.argv[1]))
    """
    done = subprocess.run([sys.executable, "-c", script, f"{s3_prefix}/x"], capture_output=True, text=True, timeout=30)
    assert "forked" in done.stdout
    assert done.stdout.endswith("b'x'\n")
