"""A folder of pictures -> predictions with Daft: its own download, decode and resize, the ONNX model in a UDF.

    DAFT_PYTHON bench/sides/daft_openvino.py MODEL.onnx IMAGES OUT

Runs in a Python of its own (daft, openvino, numpy): Daft asks for an older pyarrow than this project has.
"""

import json
import sys
from typing import Any


def main(onnx_file: str, images: str, out: str) -> None:
    """Write path and label index of every picture."""
    import daft
    import numpy as np

    @daft.cls(max_concurrency=1)
    class Predictor:
        def __init__(self) -> None:
            import openvino

            self._model = openvino.Core().compile_model(onnx_file, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})

        @daft.method.batch(return_dtype=daft.DataType.int64(), batch_size=256)
        def __call__(self, pictures: Any) -> Any:
            pixels = np.stack(pictures.to_pylist())
            return self._model(pixels)[0].argmax(1)

    frame = daft.from_glob_path(f"{images}/**/*.jpg")
    pixels = frame["path"].download().decode_image(mode="RGB").resize(32, 32)
    predicted = frame.select(frame["path"], Predictor()(pixels).alias("label"))
    predicted.write_parquet(out)
    print(json.dumps({"num_images": daft.read_parquet(f"{out}/*.parquet").count_rows()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
