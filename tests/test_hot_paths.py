"""What one picture, one name or one row may cost in Python: calls are counted, so a busy machine changes nothing.

Every picture of an archive goes through these. A limit is the count of today and a little room; whoever needs more
raises it here, knowing what it costs. Time in C is held by the ratio at the end, with room for noise.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import cv2
import numpy as np
import pytest
import simplejpeg

from fruitcnn import images, storage
from fruitcnn.inputs import Listing
from fruitcnn.plan import write_plan
from fruitcnn.sampling import Order, row_keys

NUM = 1_000


def num_calls(work: Callable[[], object]) -> int:
    """Calls of Python and C functions that `work` makes in this thread; deterministic."""
    count = 0

    def profiler(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    work()  # Whatever is cached is cached then.
    sys.setprofile(profiler)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_a_jpeg_is_decoded_in_few_calls(jpeg_bytes: Callable[..., bytes]) -> None:
    data = jpeg_bytes(0)
    assert num_calls(lambda: images.decode(data, (32, 32))) <= 23


def test_a_batch_of_rows_is_drawn_without_a_loop_over_rows() -> None:
    order = Order(60_000, seed=0)

    def draw(size: int) -> Callable[[], object]:
        return lambda: row_keys(0, *order.batch(3, size))

    few, many = num_calls(draw(64)), num_calls(draw(4_096))
    assert many <= few <= 45


def test_a_name_is_planned_in_few_calls(tmp_path: Path) -> None:
    def per_name(num: int) -> float:
        names = tmp_path / f"{num}.txt"
        names.write_text("".join(f"/pictures/{number:06d}.jpg\n" for number in range(num)))

        def plan() -> object:
            out = str(tmp_path / f"plan-{num}")
            storage.delete_prefix(out)
            return write_plan(out, Listing(str(names)), "m", {}, part_images=256, part_bytes=10**9)

        return num_calls(plan)

    assert (per_name(3 * NUM) - per_name(NUM)) / (2 * NUM) <= 46


@pytest.mark.parametrize("input_px", [32, 100])
def test_decoding_costs_little_more_than_the_decoder(jpeg_bytes: Callable[..., bytes], input_px: int) -> None:
    data = [jpeg_bytes(seed) for seed in range(100)]

    def bare() -> None:
        for each in data:
            pixels = simplejpeg.decode_jpeg(each, min_height=input_px, min_width=input_px)
            if len(pixels) != input_px:
                cv2.resize(pixels, (input_px, input_px), interpolation=cv2.INTER_AREA)

    def ours() -> None:
        for each in data:
            images.decode(each, (input_px, input_px))

    cv2.setNumThreads(1)
    ratios = [_cpu_seconds(ours) / _cpu_seconds(bare) for _ in range(15)]
    assert np.median(ratios) < 1.5, sorted(ratios)


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started
