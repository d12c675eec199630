"""Starts and ends the local Ray: private, quiet, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from search.resources import usable_cpus

#: Room for what trials and engine send each other; the features are mapped files, not objects.
OBJECT_STORE_BYTES = 128 << 20

_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # Ray listens on all interfaces
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # an actor that asks for no GPU sees none
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are the run's own business
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@contextlib.contextmanager
def ray_session(address: str | None, gpus: int) -> Iterator[None]:
    """Ray for the time of a search: a local one of its own, or a running cluster's at ``address``."""
    before = {name: os.environ.get(name) for name in (*_ENVIRONMENT, "RAY_AUTH_TOKEN_PATH")}
    home = Path(tempfile.mkdtemp(prefix="nx", dir=_short_tmp()))
    umask = os.umask(0o077)
    try:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if address is None and "RAY_AUTH_TOKEN" not in os.environ:
            token = home / "token"
            token.write_text(secrets.token_hex(32))
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        import ray

        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="nx46vx")
        else:
            ray.init(
                num_cpus=usable_cpus(), num_gpus=gpus, include_dashboard=False, log_to_driver=False,
                logging_level="ERROR", namespace="nx46vx", _temp_dir=str(home),
                object_store_memory=OBJECT_STORE_BYTES,
            )  # fmt: skip
        os.umask(umask)
        yield
    finally:
        os.umask(umask)
        with contextlib.suppress(ImportError):
            import ray

            ray.shutdown()
        shutil.rmtree(home, ignore_errors=True)
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old


def _short_tmp() -> str:
    """A temporary folder whose name leaves room for Ray's socket paths (107 bytes at most)."""
    preferred = tempfile.gettempdir()
    return preferred if len(preferred) <= 24 else "/tmp"
