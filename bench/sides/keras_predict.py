"""A folder of pictures -> predictions as a plain Keras program does it.

    python -m bench.sides.keras_predict MODEL.keras BATCH IMAGES OUT.parquet

Keras' own defaults with BATCH 32; 256 is faster, and what jobs.classify takes.
"""

import json
import sys


def main(model_file: str, batch: str, images: str, out: str) -> None:
    """Write name, label index and confidence of every picture."""
    import keras
    import pyarrow as pa
    import pyarrow.parquet as pq

    model = keras.models.load_model(model_file)
    pictures = keras.utils.image_dataset_from_directory(
        images, labels=None, image_size=model.input_shape[1:3], batch_size=int(batch), shuffle=False, verbose=False
    )
    probabilities = model.predict(pictures, verbose=0)["probabilities"]
    columns = {"id": pictures.file_paths, "label": probabilities.argmax(1), "confidence": probabilities.max(1)}
    pq.write_table(pa.table(columns), out)
    print(json.dumps({"num_images": len(probabilities)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
