"""What the figures were measured on: the machine and the versions."""

import os
import platform
from pathlib import Path
from typing import Any

from fruitcnn import installed

PACKAGES = (
    "fruitcnn",
    "keras",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "openvino",
    "pyarrow",
    "ray",
    "simplejpeg",
    "tensorflow",
    "tensorflow-cpu",
)


def machine() -> dict[str, Any]:
    """Return CPU model, cores this process may use, memory in bytes, system."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "vector_instructions": _vector_instructions(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Return the version of Python and of each installed package that decides the figures."""
    return {"python": platform.python_version()} | installed.versions(PACKAGES)


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _vector_instructions() -> str:
    flags = set(_cpuinfo("flags").split())
    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "avx", "sse4_2")
    return next((name for name in known if name in flags), "unknown")


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
