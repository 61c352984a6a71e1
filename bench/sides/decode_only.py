"""The least that sharding has to do: read every picture and decode it whole, in the threads of one process.

python -m bench.sides.decode_only SOURCE
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

_PICTURES_A_TASK = 64


def main(uri: str) -> None:
    """Time reading and decoding; listing the source is not counted, as it is not in jobs.shard's rate."""
    from fruitcnn import images
    from fruitcnn.sources import open_source

    source = open_source(uri)
    started = time.perf_counter()

    def work(start: int) -> int:
        records = source.records[start : start + _PICTURES_A_TASK]
        return sum(images.check(source.read(record))[0] > 0 for record in records)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        num_images = sum(pool.map(work, range(0, len(source.records), _PICTURES_A_TASK)))
    print(json.dumps({"num_images": num_images, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
