"""A folder of pictures -> predictions in the pattern of Ray's own guide to batch inference of images.

    python -m bench.sides.ray_guide MODEL.keras IMAGES OUT

https://docs.ray.io/en/latest/data/batch_inference.html: read_images, map_batches with a class, write_parquet.
"""

import json
import sys
from typing import Any


def main(model_file: str, images: str, out: str) -> None:
    """Write path, label index and confidence of every picture."""
    import ray

    # A session of its own: else Ray waits for a cluster that was killed and left its address behind.
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    pictures = ray.data.read_images(images, size=(32, 32), mode="RGB", include_paths=True)
    predicted = pictures.map_batches(
        _Predictor, fn_constructor_args=(model_file,), batch_size=256, compute=ray.data.ActorPoolStrategy(size=1)
    )
    predicted.write_parquet(out)
    print(json.dumps({"num_images": ray.data.read_parquet(out).count()}))


class _Predictor:
    def __init__(self, model_file: str) -> None:
        import keras

        self._model = keras.models.load_model(model_file)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        probabilities = self._model.predict(batch["image"], verbose=0)["probabilities"]
        return {"path": batch["path"], "label": probabilities.argmax(1), "confidence": probabilities.max(1)}


if __name__ == "__main__":
    main(*sys.argv[1:])
