"""Code run in a process of its own, so that its memory is its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import orjson

_FRAME = """
import sys, orjson
arguments = orjson.loads(sys.argv[1])
from {module} import {function}
found = {function}(**arguments)
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
print(orjson.dumps({{**found, "peak_bytes": peak}}).decode())
"""


def in_child(module: str, function: str, **arguments: Any) -> Mapping[str, Any]:
    """What a function returns (a mapping of numbers) in a fresh interpreter; with it, ``peak_bytes``: its most
    resident memory.

    Raises:
        RuntimeError: the child failed; holds what it said.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _FRAME.format(module=module, function=function), orjson.dumps(arguments).decode()],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: Mapping[str, Any] = orjson.loads(done.stdout.splitlines()[-1])
    return found
