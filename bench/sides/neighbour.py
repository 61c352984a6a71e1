"""A core kept as busy as a node of its own would keep it, until it is ended: what scaling.py measures one node beside.

    python -m bench.sides.neighbour classify MODEL IMAGES PREDICTIONS
    python -m bench.sides.neighbour train PIXELS ROWS

Two cores are rarely twice one: they share caches, memory and often their arithmetic. Held to one core by whoever starts
it, it does the actor's or the worker's own work over and over, without Ray, and says "busy" once it does.
"""

import itertools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def main(kind: str, *arguments: str) -> None:
    """Work until killed."""
    kinds: dict[str, Callable[..., Callable[[int], object]]] = {"classify": _classify, "train": _train}
    work = kinds[kind](*arguments)
    for number in itertools.count():
        work(number)
        if number == 1:
            print("busy", flush=True)


def _classify(model: str, images: str, predictions: str) -> Callable[[int], object]:
    from fruitcnn.actor import opened
    from fruitcnn.classify import prepare
    from fruitcnn.classify_config import ClassifyConfig
    from fruitcnn.execute import local_options
    from fruitcnn.infer import open_models
    from fruitcnn.orders import CALLS_PER_ACTOR

    run = prepare(ClassifyConfig(model=model, images=images, predictions=predictions))
    classifier = opened(run.predictions, open_models(model, run.runtime, 1), local_options(run.config))
    calls = ThreadPoolExecutor(CALLS_PER_ACTOR)

    def parts(number: int) -> object:
        first = number * CALLS_PER_ACTOR
        # A part that is done is worked on all the same, and not put again.
        return list(
            calls.map(lambda part: classifier.run(part % run.plan.num_parts), range(first, first + CALLS_PER_ACTOR))
        )

    return parts


def _train(pixels: str, rows: str) -> Callable[[int], object]:
    import numpy as np

    from fruitcnn.runtimes import import_tensorflow

    import_tensorflow()  # without its greeting
    from bench.sides.training import load
    from fruitcnn.group import open_group
    from fruitcnn.recipe import TrainConfig
    from fruitcnn.replica import Replica

    images, labels = load(pixels)
    num_rows, keys = int(rows), np.arange(int(rows), dtype=np.int32)
    config = TrainConfig(dataset="-", run="-", global_batch_size=num_rows)
    replica = Replica(config, int(labels.max()) + 1, 1, open_group(config, 1, 1))

    def step(number: int) -> object:
        start = number * num_rows % (len(labels) - num_rows)
        return float(replica.step(images[start : start + num_rows], labels[start : start + num_rows], keys, 0)[0])

    return step


if __name__ == "__main__":
    main(*sys.argv[1:])
