"""A bucket of pictures -> predictions as a careful program with boto3 does it: 32 threads read and decode, OpenVINO.

python -m bench.sides.boto3_openvino MODEL.onnx s3://BUCKET/PREFIX OUT.parquet
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

_THREADS = 32
_BATCH = 256
_PX = 32


def main(onnx_file: str, images: str, out: str) -> None:
    """Write key and label index of every picture."""
    import boto3
    import openvino
    import pyarrow as pa
    import pyarrow.parquet as pq
    from botocore.config import Config

    model = openvino.Core().compile_model(onnx_file, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    bucket, _, prefix = images.removeprefix("s3://").partition("/")
    client = boto3.client("s3", config=Config(max_pool_connections=_THREADS))
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    labels: list[int] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        pictures = pool.map(lambda key: _decoded(client.get_object(Bucket=bucket, Key=key)["Body"].read()), keys)
        for start in range(0, len(keys), _BATCH):
            batch = [next(pictures) for _ in keys[start : start + _BATCH]]
            labels += model(np.stack(batch))[0].argmax(1).tolist()
    pq.write_table(pa.table({"id": keys, "label": labels}), out)
    print(json.dumps({"num_images": len(labels)}))


def _decoded(data: bytes) -> Any:
    import cv2
    import simplejpeg

    found = simplejpeg.decode_jpeg(data, min_height=_PX, min_width=_PX)
    return cv2.resize(found, (_PX, _PX), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main(*sys.argv[1:])
