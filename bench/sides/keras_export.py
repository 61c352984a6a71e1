"""A trained model -> the files that an application reads, as a script writes them: nothing is compared or calibrated.

python -m bench.sides.keras_export MODEL.keras FOLDER
"""

import json
import sys
from pathlib import Path


def main(model_file: str, folder: str) -> None:
    """Write weights, SavedModel, ONNX and TFLite."""
    import keras
    import tensorflow as tf
    import tf2onnx

    model = keras.models.load_model(model_file)
    model.save_weights(f"{folder}/model.weights.h5")
    model.export(f"{folder}/saved_model", verbose=False)
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="image")]
    traced = tf.function(lambda image: model(image, training=False), signature)
    tf2onnx.convert.from_function(traced, signature, output_path=f"{folder}/model.onnx")
    lite = tf.lite.TFLiteConverter.from_saved_model(f"{folder}/saved_model").convert()
    (Path(folder) / "model.tflite").write_bytes(lite)
    print(json.dumps({"num_files": 4}))


if __name__ == "__main__":
    main(*sys.argv[1:])
