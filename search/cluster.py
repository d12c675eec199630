"""Starts and ends the local Ray: private, quiet, and nothing left behind."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from nx46vx.errors import EnvironmentFault, UsageError
from search.resources import usable_cpus

#: Room for what trials and engine send each other; the features are mapped files, not objects.
OBJECT_STORE_BYTES = 128 << 20
#: Longest that a cluster's port may take to answer.
KNOCK_SECONDS = 10.0

_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # an actor that asks for no GPU sees none
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # TensorBoard files only: each logger costs time per result
    "TUNE_GLOBAL_CHECKPOINT_S": "300",  # nothing of ours is read back from Tune's state
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are the run's own business
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

#: For a Ray of our own, whatever the user's shell says of clusters.
_LOCAL = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # no cluster, on Linux too: every port is on the loopback interface only
}


def prepare_environment(address: str | None) -> None:
    """Set what Ray reads when it is imported: has to run before the first ``import ray`` of the process.

    A local Ray listens on the loopback interface only, and gets a token of its own, which lives in the environment of
    this process and its children and in no file; for a cluster the user's own token counts (``RAY_AUTH_TOKEN``,
    ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``).
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None:
        os.environ.update(_LOCAL, RAY_AUTH_TOKEN=_own_token())


@functools.cache
def _own_token() -> str:
    """One for the whole process: Ray reads it once."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def ray_session(address: str | None, gpus: Sequence[str]) -> Iterator[None]:
    """Ray for the time of a search: a local one of its own, or a running cluster's at ``address``.

    ``gpus``: ids of the GPUs that a local one is to know, as ``CUDA_VISIBLE_DEVICES`` names them.
    """
    import ray

    _sweep()
    home = Path(tempfile.mkdtemp(prefix=f"nx{os.getpid()}-", dir=_short_tmp()))
    umask = os.umask(0o077)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address is not None:
            _connect(address)
        else:
            with _own_process_groups(), _visible(gpus):
                ray.init(
                    "local", num_cpus=usable_cpus(), num_gpus=len(gpus), include_dashboard=False, log_to_driver=False,
                    logging_level=logging.ERROR, namespace="nx46vx", object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=str(home / "r"),  # Ray opens its own folder to all; the one around it is private
                )  # fmt: skip
        os.umask(umask)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray puts its own in their place
                signal.signal(number, handler)
        yield
    finally:
        os.umask(umask)
        ray.shutdown()
        shutil.rmtree(home, ignore_errors=True)


def _connect(address: str) -> None:
    """Join a running cluster.

    Raises:
        UsageError: the address is that of a client's port.
        EnvironmentFault: nothing answers there, or the token is another one.
    """
    import ray

    if address.startswith("ray://"):
        raise UsageError(
            "the run has to be started on a machine of the cluster", where="resources.ray_address", found=address,
            fix="start it there, with the address that `ray start` printed, or auto",
        )  # fmt: skip
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="nx46vx")
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EnvironmentFault(
            "the Ray cluster cannot be reached", where=address, found=said,
            fix="check --ray-address, that the cluster runs, and that its token is yours (RAY_AUTH_TOKEN)",
        ) from error  # fmt: skip


def _knock(address: str) -> None:
    """Ray itself tries for minutes where nobody listens; raises ``OSError`` at once."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


@contextlib.contextmanager
def _visible(gpus: Sequence[str]) -> Iterator[None]:
    """Ray's processes are started with these GPUs, in this order; this process keeps what it sees."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    try:
        yield
    finally:
        if gpus:
            del os.environ["CUDA_VISIBLE_DEVICES"]
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


@contextlib.contextmanager
def _own_process_groups() -> Iterator[None]:
    """Processes started here leave our process group: a signal to the group is for the run, which then ends Ray."""
    start = subprocess.Popen.__init__

    def start_apart(self: Any, *args: Any, **options: Any) -> None:
        options.setdefault("process_group", 0)
        start(self, *args, **options)

    subprocess.Popen.__init__ = start_apart  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]


def _sweep() -> None:
    """Remove what killed runs of this user left of their Ray sessions."""
    for folder in Path(_short_tmp()).glob("nx*-*"):
        pid = folder.name[2:].partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)) and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _short_tmp() -> str:
    """A temporary folder whose name leaves room for Ray's socket paths (107 bytes at most, 86 of them below it)."""
    preferred = tempfile.gettempdir()
    return preferred if len(preferred) <= 16 else "/tmp"
