"""What a process of the crew does: opens a model, classifies parts, says an Outcome for each. Started by crew.py.

Its standard input says, a line of JSON each: which model, which run, and part numbers; its standard output has the
outcomes. It ends when its input does, so when the job's process does, however that ends.
"""

import json
import os
import signal
import sys
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fruitcnn.crew import is_talkative
from fruitcnn.orders import CALLS_PER_ACTOR, Options, Outcome

if TYPE_CHECKING:
    from fruitcnn.actor import PartClassifier
    from fruitcnn.infer import Model


def main() -> None:
    """Do what standard input says until it ends: a line with the model, one with the run, then a part number each."""
    # Ctrl-C goes to all processes of a terminal; it is the job's own that decides, and then this input ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is no answer
    orders, lock = map(json.loads, sys.stdin.buffer), threading.Lock()
    pool = ThreadPoolExecutor(CALLS_PER_ACTOR)

    def work(part: int, classifier: "Future[PartClassifier]") -> None:
        said = _outcome(part, classifier).model_dump_json().encode() + b"\n"
        with lock:
            answers.write(said)

    with suppress(StopIteration):
        models = pool.submit(_opened, *next(orders))  # while the job still makes its plan
        classifier = pool.submit(_classifier, models, *next(orders))
        for part in orders:
            pool.submit(work, part, classifier)
    os._exit(0)  # done, stopped or killed: what is under way now is done again by whoever continues the job


def _opened(model_uri: str, runtime: str) -> "list[Model]":
    from fruitcnn.infer import open_models

    return open_models(model_uri, runtime, 1)


def _classifier(models: "Future[list[Model]]", predictions: str, options: dict[str, Any]) -> "PartClassifier":
    found = models.result()  # first, as threads that import at the same time find modules half made
    from fruitcnn.actor import opened

    return opened(predictions, found, Options.model_validate(options))


def _outcome(part: int, classifier: "Future[PartClassifier]") -> Outcome:
    """Classify a part; where that fails unforeseen, answer with the error."""
    try:
        return classifier.result().run(part)
    except Exception as error:  # noqa: BLE001 - for the job's own process to say
        if is_talkative():
            traceback.print_exc()
        return Outcome(part=part, error=f"part {part}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
