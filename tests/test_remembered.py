"""remembered.py: what is remembered is bounded and right, and only answers that depend on nothing else are."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from frozen_run import bundle
from hypothesis import given
from hypothesis import strategies as st

from fruitcnn import frozen, remembered
from fruitcnn.familiar import Answers
from fruitcnn.remembered import Answered, Batch, Facts, Memory

Pixels = npt.NDArray[np.uint8]
NO_ANSWERS = Answers(np.zeros((1, 2), np.float32), np.zeros(1, np.float32))


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=30), st.integers(0, 30))
def test_the_last_inputs_are_remembered_and_never_more_than_allowed(batches: list[list[int]], limit: int) -> None:
    memory, newest = Memory(limit), {}
    for number, names in enumerate(batches):
        facts = [Facts(f"{name} of {number}", str(name), 1, 1, None, None) for name in names]
        seen = {str(name): names.index(name) for name in names}
        memory.add(Answered(facts, NO_ANSWERS, [0] * len(names), seen))
        newest |= {str(name): f"{name} of {number}" for name in names}
        found = {name: entry.facts.id for name in newest if (entry := memory.get(name))}
        assert len(found) == len(memory) <= limit
        assert found.items() <= newest.items()
        kept, held = set(), 0
        for earlier in batches[number::-1]:
            if (held := held + len(earlier)) > limit:
                break
            kept |= {str(name) for name in earlier}
        assert found.keys() == kept


@given(st.lists(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=8), max_size=12), st.integers(0, 20))
def test_every_input_has_the_answer_to_its_bytes(batches: list[list[tuple[int, bool]]], limit: int) -> None:
    """A file is a number and whether it has its bytes at all; multiples of five are no pictures."""
    memory = Memory(limit)
    for files in batches:
        batch, known = Batch(memory.get), {number for number in range(13) if memory.get(str(number))}
        for place, (number, is_there) in enumerate(files):
            if is_there and batch.take_repeat(str(place), str(number)):
                continue
            cause = "not-found" if not is_there else "broken" if number % 5 == 0 else None
            digest = str(number) if is_there else None
            batch.take(Facts(str(place), digest, number, 1, cause, None), None if cause else pixels_of(number))
        found = batch.answered(answer(np.stack(batch.pictures)) if batch.pictures else NO_ANSWERS)
        memory.add(found)
        assert len(batch.pictures) == len({n for n, is_there in files if is_there and n % 5} - known)
        for place, (number, is_there) in enumerate(files):
            facts, row = found.facts[place], found.rows[place]
            assert facts.id == str(place)
            assert facts.sha256 == (str(number) if is_there else None)
            assert facts.cause == ("not-found" if not is_there else None if number % 5 else "broken")
            if not facts.cause:
                assert (found.answers.probabilities[row] == [number, 2 * number]).all()
                assert found.answers.unlike[row] == number


def pixels_of(number: int) -> Pixels:
    return np.full((2, 2, 3), number, np.uint8)


def answer(pixels: Pixels) -> Answers:
    numbers = pixels[:, 0, 0, 0].astype(np.float32)
    return Answers(np.stack([numbers, 2 * numbers], 1), numbers)


def mean(pixels: Pixels) -> npt.NDArray[np.float32]:
    return pixels.mean((1, 2, 3), dtype=np.float32)


UNSTEADY: dict[str, Callable[[Pixels], npt.NDArray[np.float32]]] = {
    "place": lambda pixels: mean(pixels) + np.arange(len(pixels)) // 3 * np.float32(1e-4),
    "neighbours": lambda pixels: mean(pixels) + mean(pixels).max() * np.float32(1e-4),
    "number of rows": lambda pixels: mean(pixels) + np.float32(1e-4) * (len(pixels) == 5),
}


@pytest.mark.parametrize("depends_on", UNSTEADY)
def test_answers_that_depend_on_anything_else_are_not_steady(depends_on: str) -> None:
    def asked(score: Callable[[Pixels], npt.NDArray[np.float32]]) -> Callable[[Pixels], Answers]:
        return lambda pixels: Answers(mean(pixels)[:, None], score(pixels))

    assert remembered.is_steady(asked(mean), (4, 4), 8)
    assert not remembered.is_steady(asked(UNSTEADY[depends_on]), (4, 4), 8)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_networks_answers_are_steady_in_calls_of_any_size(
    runtime: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = frozen.load(str(bundle(tmp_path_factory.getbasetemp()).model), runtime, num_threads=1)
    assert model.rows_per_call == (32 if runtime == "openvino" else None)
    assert remembered.is_steady(model.answer, model.input_px, 32)
