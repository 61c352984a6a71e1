"""plan.py: every input in exactly one part, one plan per folder, and refusal of what is not ours."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruitcnn import storage
from fruitcnn.errors import UsageError
from fruitcnn.inputs import Input, Listing
from fruitcnn.plan import (
    PARTS_PER_FILE,
    Plan,
    PlanReader,
    cut,
    load_plan,
    require_ours_or_empty,
    require_same_run,
    write_plan,
)


def make_object(name: str, size_bytes: int = 1) -> Input:
    return Input("", name, 0, size_bytes, 0, None, None)


@given(st.lists(st.integers(-1, 50)), st.integers(1, 7), st.integers(1, 100))
def test_parts_hold_every_input_once_in_order_within_limits(sizes: list[int], images: int, part_bytes: int) -> None:
    inputs = [make_object(str(i), size) for i, size in enumerate(sizes)]
    parts = list(cut(inputs, images, part_bytes))
    assert [item for part in parts for item in part] == inputs
    assert all(1 <= len(part) <= images for part in parts)
    assert all(sum(max(0, item.size_bytes) for item in part[:-1]) < part_bytes for part in parts)


def test_parts_do_not_cross_shards_but_do_cross_archives() -> None:
    rows = [Input(shard, "", row, 1, 0, None, None) for shard in ("s1", "s2") for row in range(3)]
    members = [Input(archive, f"{row}.jpg", row, 1, 0, None, None) for archive in ("a1", "a2") for row in range(3)]
    assert [len(part) for part in cut(rows, 100, 100)] == [3, 3]
    assert [len(part) for part in cut(members, 100, 100)] == [6]


def picture_folder(folder: Path, num_files: int) -> str:
    folder.mkdir()
    for number in range(num_files):
        (folder / f"{number:04d}.jpg").write_bytes(b"x" * number)
    return str(folder)


def plan_of(images: str, predictions: str, part_images: int = 2) -> Plan:
    return write_plan(predictions, Listing(images), "model", {"images": images, "top_k": 5}, part_images, 10**9)


def test_the_plan_read_back_holds_the_listing(tmp_path: Path, any_prefix: str) -> None:
    images = picture_folder(tmp_path / "in", 7)
    plan = plan_of(images, any_prefix)
    assert load_plan(any_prefix) == plan
    assert plan.part_inputs() == [2, 2, 2, 1]
    reader = PlanReader(any_prefix, plan)
    assert [item for part in range(4) for item in reader.read(part)] == list(Listing(images))
    assert plan.num_inputs == 7
    assert plan.num_bytes == 21


def test_parts_beyond_one_plan_file_are_found(tmp_path: Path) -> None:
    images = picture_folder(tmp_path / "in", PARTS_PER_FILE + 3)
    plan = plan_of(images, str(tmp_path / "out"), part_images=1)
    assert [len(file.part_inputs) for file in plan.files] == [PARTS_PER_FILE, 3]
    reader = PlanReader(str(tmp_path / "out"), plan)
    assert reader.read(PARTS_PER_FILE + 1)[0].name.endswith(f"{PARTS_PER_FILE + 1:04d}.jpg")
    assert reader.read(0)[0].name.endswith("0000.jpg")


def test_names_that_are_not_utf8_survive_the_plan(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    odd = (str(tmp_path / "in") + "/caf\udce9.jpg").encode("utf-8", "surrogateescape")
    with open(odd, "wb") as file:
        file.write(b"x")
    plan = plan_of(str(tmp_path / "in"), str(tmp_path / "out"))
    (found,) = PlanReader(str(tmp_path / "out"), plan).read(0)
    assert found.name.encode("utf-8", "surrogateescape") == odd


def test_of_two_plans_the_first_counts_and_the_others_files_go(tmp_path: Path) -> None:
    images = picture_folder(tmp_path / "in", 4)
    first = plan_of(images, str(tmp_path / "out"))
    (tmp_path / "in" / "late.jpg").write_bytes(b"late")
    assert plan_of(images, str(tmp_path / "out")) == first
    there = {entry.uri for entry in storage.list_files(str(tmp_path / "out" / "plan"))}
    assert there == {storage.join(str(tmp_path / "out"), file.path) for file in first.files}


def test_the_same_listing_model_and_settings_are_the_same_run(tmp_path: Path) -> None:
    images = picture_folder(tmp_path / "in", 4)
    one, same = (plan_of(images, str(tmp_path / name)) for name in ("one", "same"))
    other = plan_of(images, str(tmp_path / "other"), part_images=3)
    assert one == same
    assert one.run_id != other.run_id


def test_another_run_is_refused_and_every_difference_named(tmp_path: Path) -> None:
    images = picture_folder(tmp_path / "in", 4)
    plan = plan_of(images, str(tmp_path / "out"))
    require_same_run("out", plan, "model", {"images": images, "top_k": 5})
    with pytest.raises(UsageError) as error:
        require_same_run("out", plan, "other model", {"images": images, "top_k": 3})
    assert "model hash: that run has 'model', this command says 'other model'" in str(error.value)
    assert "top k: that run has 5, this command says 3" in str(error.value)
    assert "images" not in str(error.value)


def test_a_folder_that_holds_something_else_is_refused_a_begun_plan_is_not(tmp_path: Path) -> None:
    require_ours_or_empty(str(tmp_path / "new"))
    (tmp_path / "out" / "plan").mkdir(parents=True)
    (tmp_path / "out" / "plan" / "inputs-00000-abc.parquet").write_bytes(b"begun")
    require_ours_or_empty(str(tmp_path / "out"))
    (tmp_path / "out" / "thesis.doc").write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"holds thesis\.doc and no plan\.json"):
        require_ours_or_empty(str(tmp_path / "out"))


def test_an_empty_listing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".hidden").write_bytes(b"x")
    with pytest.raises(UsageError, match="1 hidden files passed over"):
        plan_of(str(tmp_path / "in"), str(tmp_path / "out"))
    assert load_plan(str(tmp_path / "out")) is None
