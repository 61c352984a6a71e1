"""A Python process with a Ray cluster of its own: what it said, and nothing of it left behind."""

import os
import subprocess
import sys

import psutil


def run_to_the_end(script: str, *arguments: str, timeout_seconds: float, **environment: str) -> str:
    """Run `script` until it ends; return its standard output. Fails where its exit code is not 0."""
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    try:
        said, complaints = process.communicate(timeout=timeout_seconds)
    finally:
        # Its cluster would outlive it.
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for each in [*left, process]:
            each.kill()
    assert process.returncode == 0, complaints[-3000:]
    return said
