"""One method from fit to score in a process of its own: its time, its memory, its masks' scores."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx.bench.boosted_trees import BoostedTrees
from nx46vx.bench.fitted import PARTS
from nx46vx.bench.intensity import Intensity
from nx46vx.bench.product import Fused, SingleCandidate, UNet, WholeEnsemble
from nx46vx.bench.quality_methods import Method, Training, choose
from nx46vx.bench.reference_2d import Reference2D
from nx46vx.bench.ridge_nms import RidgeNms
from nx46vx.inference.scoring import LabelScorer

#: In the table's order; names are keys in JSON.
METHODS: Mapping[str, Callable[[], Method]] = {
    "reference_2d": Reference2D, "intensity_threshold": Intensity, "ridge_nms": RidgeNms,
    "single_candidate": SingleCandidate, "ensemble": WholeEnsemble, "boosted_trees": BoostedTrees, "u_net": UNet,
    "fusion": Fused,
}  # fmt: skip
#: Those that need a student in the run.
OF_STUDENT = ("u_net", "fusion")


def keep(folder: Path, name: str, volumes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write volumes and labels where ``assess`` reads them."""
    for number, pair in enumerate(volumes):
        for kind, array in zip(("volume", "label"), pair, strict=True):
            np.save(folder / f"{name}_{number:03d}_{kind}.npy", array)


def kept(folder: Path, name: str, kind: str) -> list[np.ndarray]:
    """What ``keep`` wrote: the volumes, or their labels."""
    return [np.load(path) for path in sorted(folder.glob(f"{name}_*_{kind}.npy"))]


def assess(method: str, folder: str) -> dict[str, Any]:
    """Fit, choose on the ``choosing`` volumes, mask each ``held_out`` one (after one that does not count), score.

    Returns:
        ``fit_s`` (the run's stages included), ``chosen``, ``tried``, ``choosing_score``; for each held-out volume
        ``seconds``, ``processor_s`` (of all threads) and the ``PARTS``; ``masking_bytes``: the most resident memory of
        the process while it does what ``masking_bytes_of`` says.
    """
    training, one = Training(Path(folder)), METHODS[method]()
    started = time.perf_counter()
    one.fit(training)
    fit_s = time.perf_counter() - started + sum(training.report["seconds"][stage] for stage in one.stages)
    pairs = zip(kept(Path(folder), "choosing", "volume"), kept(Path(folder), "choosing", "label"), strict=True)
    chosen, score, tried = choose(one, list(pairs))
    volumes = kept(Path(folder), "held_out", "volume")
    one.mask(volumes[0], chosen)
    peak_of = "making masks" if forget_peak() else "the whole process"
    seconds, busy, masks = [], [], []
    for volume in volumes:
        started, worked = time.perf_counter(), time.process_time()
        masks.append(one.mask(volume, chosen))
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
    peak = peak_bytes()
    scores = [
        LabelScorer(label).score(mask)
        for label, mask in zip(kept(Path(folder), "held_out", "label"), masks, strict=True)
    ]
    return {
        "fit_s": fit_s, "chosen": dict(chosen), "tried": tried, "choosing_score": score, "seconds": seconds,
        "processor_s": busy, "masking_bytes": peak, "masking_bytes_of": peak_of,
        **{part: [getattr(found, part) for found in scores] for part in PARTS},
    }  # fmt: skip


def forget_peak() -> bool:
    """Give free memory back to the system, and let its record of the most resident memory begin anew.

    False where the system does not allow it: the record goes on then.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # the C library need not be glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most resident memory since ``forget_peak``."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
