"""What every job stands on: run(ConfigModel, main, __doc__) parses, runs main(config), and ends with an exit code.

0 done, 1 the job failed, 2 wrong usage (nothing was started), 130 interrupted. No traceback reaches the screen.
"""

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from fruitcnn import sealed
from fruitcnn.errors import UsageError
from jobs.arguments import ConfigT, parse
from jobs.screen import progress, summary
from jobs.session import is_ours, ray_session, ray_when_needed, root_cause

__all__ = ["UsageError", "progress", "ray_session", "ray_when_needed", "run", "summary"]

LONGEST_CAUSE_CHARS = 600
# Ray Data appends advice on its own settings to the message of whatever a worker raised.
RAY_DATA_NOTE = "\nFailed to apply UDF transform"


def run(
    config_class: type[ConfigT],
    main: Callable[[ConfigT], None],
    doc: str | None,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Parse `argv` (default: the process's) into `config_class`, call `main` with it, and exit.

    ValueError and OSError classes of this project, and UsageError, are shown as their message. Anything else also
    leaves a traceback in a log file, named on the screen; FRUITCNN_TRACEBACK=1 prints it instead.
    """
    command = _command(main)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that a terminal cannot show must not cost the table
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sealed.open_environment()  # what a submitted job was given to know may be one of its arguments
        config = parse(config_class, sys.argv[1:] if argv is None else argv, os.environ, command, doc or "")
        sys.stdout.flush()
    except (UsageError, sealed.SealError) as error:
        _say(str(error))
        print(f"nothing was started; {command} --help lists every argument", file=sys.stderr)
        sys.exit(2)
    sys.exit(_exit_code(main, config, command))


def _exit_code(main: Callable[[ConfigT], None], config: ConfigT, command: str) -> int:
    try:
        main(_with_models(config))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from what is done", file=sys.stderr)
        return 130
    except UsageError as error:
        _show(error, command)
        return 2
    except BrokenPipeError as error:
        if _stdout_is_gone():
            return 1
        _show(error, command)
        return 1
    except Exception as error:  # noqa: BLE001 - the one place where nothing may get past
        _show(root_cause(error), command)
        return 1
    return 0


def _with_models(config: ConfigT) -> ConfigT:
    """Every registry:NAME@champion becomes the URI it means now, once, before anything starts: it may change later."""
    asked = {name: value for name, value in config if isinstance(value, str) and value.startswith("registry:")}
    if not asked:
        return config
    from fruitcnn import registry

    return config.model_copy(update={name: registry.resolve(value) for name, value in asked.items()})


def _command(main: Callable[..., None]) -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if main.__module__ == "__main__" and spec else main.__module__
    return f"python -m {module}"


def _show(error: BaseException, command: str) -> None:
    trace = "".join(traceback.format_exception(error))
    if os.environ.get("FRUITCNN_TRACEBACK"):
        print(trace, file=sys.stderr)
    if is_ours(error):
        _say(str(error).split(RAY_DATA_NOTE)[0])
        return
    # Not one of ours: the message alone may not be enough to act on.
    _say(_one_line(error))
    prefix = f"fruitcnn-{command.split()[-1].split('.')[-1]}-"
    with tempfile.NamedTemporaryFile("w", prefix=prefix, suffix=".log", delete=False) as log:
        log.write(trace)
    print(f"traceback: {log.name}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Ray's own errors carry a whole traceback as their text; what happened is its last line.
    text = lines[-1] if lines and type(error).__module__.startswith("ray.") else " ".join(lines)
    text = text[:LONGEST_CAUSE_CHARS]
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}".strip(": ")


def _say(message: str) -> None:
    for line in message.replace("\N{NO-BREAK SPACE}", " ").splitlines():
        print(f"error: {line}", file=sys.stderr)


def _stdout_is_gone() -> bool:
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must go somewhere, or the interpreter complains when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
