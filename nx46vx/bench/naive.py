"""Yardsticks: how the earlier runs logged an event, and how a checkpoint is usually saved."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class NaiveLog:
    """Opens its file again for every event, sorts the keys, hashes the record and then the chain, writes, flushes,
    closes. Nothing of it is synced, so a power loss may take any of it."""

    def __init__(self, path: Path) -> None:
        self._path, self._chain, self.count = path, "", 0

    def emit(self, event: str, fields: Mapping[str, Any]) -> None:
        record = {"ts_ns": time.time_ns(), "seq": self.count, "event": event, **fields}
        text = json.dumps(record, sort_keys=True)
        record["digest"] = hashlib.sha512(text.encode()).hexdigest()
        record["chain"] = self._chain = hashlib.sha512((self._chain + record["digest"]).encode()).hexdigest()
        with open(self._path, "a") as file:
            file.write(json.dumps(record, sort_keys=True) + "\n")
            file.flush()
        self.count += 1


def naive_checkpoint(folder: Path, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Arrays through ``np.savez``, the rest as JSON; each is synced and renamed over the one before."""
    for name in ("state.npz", "state.json"):
        temporary = folder / f"{name}.tmp"
        with open(temporary, "wb") as file:
            if name == "state.npz":
                np.savez(file, *arrays.values())
            else:
                file.write(json.dumps(manifest).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / name)
