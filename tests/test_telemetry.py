"""What workers tell: nothing outside an actor; inside one, metrics of Ray's and one JSON line each."""

import json

import pytest

from fruitcnn import telemetry


def test_outside_an_actor_nothing_is_written(capsys: pytest.CaptureFixture[str]):
    telemetry._is_actor.cache_clear()
    telemetry.part_done("run", 3, 1, 100, 2, 0.5)
    telemetry.part_failed("run", 3, 1, "no answer")
    telemetry.window_done("run", 1, 0, 10, 5, 320, 1.0, 0.1)
    telemetry.group_restarted("run", 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.ray
def test_in_an_actor_metrics_are_counted_and_lines_name_run_part_and_attempt(ray_session: None):
    import ray

    class Teller:
        def tell(self) -> tuple[list[str], list[str]]:
            import contextlib
            import io

            from fruitcnn import telemetry

            lines = io.StringIO()
            with contextlib.redirect_stderr(lines):
                telemetry.part_done("run-1", 3, 2, 100, 0, 0.5)
                telemetry.part_failed("run-1", 4, 1, "no answer")
                telemetry.window_done("s3://b/run", 2, 1, 10, 5, 320, 1.0, 0.25)
                telemetry.group_restarted("s3://b/run", 2)
            named = [telemetry._counter(name, "").info["name"] for name in ("images", "retries")]
            return lines.getvalue().splitlines(), named

    lines, named = ray.get(ray.remote(num_cpus=0)(Teller).remote().tell.remote())
    part, failed, steps, again = map(json.loads, lines)
    assert (part["event"], part["run"], part["part"], part["attempt"], part["images"]) == ("part", "run-1", 3, 2, 100)
    assert (failed["event"], failed["part"], failed["error"]) == ("part_failed", 4, "no answer")
    assert (again["event"], again["run"], again["attempt"], steps["attempt"]) == ("group_restarted", "s3://b/run", 2, 2)
    assert (steps["rank"], steps["step"], steps["seconds"], steps["wait"]) == (1, 10, 1.0, 0.25)
    assert len(named) == 2
