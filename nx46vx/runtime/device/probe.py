"""Tries every GPU with a kernel, in a process of its own: the driver keeps no context on a GPU and loads no torch."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import orjson

from nx46vx.runtime.device.found import Gpu, Probe

#: Longest that trying the GPUs may take: a driver that hangs must not hang the run.
SECONDS = 120.0


@cache
def probe() -> Probe:
    """The GPUs of this machine; starts nothing where there can be none."""
    if not glob.glob("/dev/nvidia[0-9]*") and not glob.glob("/dev/dxg"):
        return Probe((), (), "no GPU device on this machine")
    try:
        done = subprocess.run(_command(), env=_environment(), capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return _failed(f"trying the GPUs took longer than {SECONDS:.0f} s")
    except OSError as error:
        return _failed(f"trying the GPUs failed: {error}")
    try:
        found = Probe.from_json(orjson.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError, KeyError, TypeError):
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        return _failed(f"trying the GPUs failed: {said[-1]}")
    return found if found.gpus or found.failures else _failed(found.reason)


def probe_here() -> Probe:
    """The same in this process, which holds a context on every GPU from then on."""
    import torch

    if not torch.cuda.is_available():
        return Probe((), (), "torch sees no GPU")
    gpus, failures = [], []
    for index in range(torch.cuda.device_count()):
        name = "unnamed"
        try:
            name = torch.cuda.get_device_name(index)
            value = (torch.ones(8, device=f"cuda:{index}") * 2).sum().item()
            if value != 16.0:
                raise RuntimeError(f"a kernel gave {value} for 16")
            free, total = torch.cuda.mem_get_info(index)
            major, minor = torch.cuda.get_device_capability(index)
            gpus.append(Gpu(index, visible_id(index), name, int(total), int(free), f"{major}{minor}"))
        except Exception as error:  # torch and CUDA have many kinds of their own
            first = (str(error).splitlines() or [type(error).__name__])[0]
            failures.append(f"GPU {index} ({name}) cannot run a kernel: {first}")
    return Probe(tuple(gpus), tuple(failures), "; ".join(failures) if failures else f"{len(gpus)} GPU run kernels")


def visible_id(index: int, environ: dict[str, str] | None = None) -> str:
    """How ``CUDA_VISIBLE_DEVICES`` of a child names the GPU that is number ``index`` here."""
    listed = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in listed.split(",") if name.strip()]
    return names[index] if index < len(names) else str(index)


def say_what_is_here() -> None:
    """Print ``probe_here``'s finding as one line of JSON: what the child process does."""
    sys.stdout.buffer.write(orjson.dumps(probe_here().to_json()) + b"\n")


def _command() -> list[str]:
    return [sys.executable, "-P", "-c", f"from {__name__} import say_what_is_here; say_what_is_here()"]


def _environment() -> dict[str, str]:
    """This process's, and the way to this package."""
    root = str(Path(__file__).resolve().parents[3])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _failed(reason: str) -> Probe:
    return Probe((), (reason,), reason)
