"""Whether a GPU's features are the processor's, bit for bit: tried on a small volume before a GPU is used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nx46vx.data.synthetic import make_case
from nx46vx.errors import in_words
from nx46vx.features.backend import Backend, backend
from nx46vx.features.blocks import iter_blocks, sample_features
from nx46vx.features.gpu import WORDS, Gpu
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import measure_reference

#: Edge of the volume, of the blocks of its samples, and how many these are.
EDGE, BLOCK, SAMPLES = 48, 40, 500
#: Differences up to this share of a feature's spread are rounding; beyond it the values are wrong.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Check:
    """``same_bits``: every value is the processor's. Else ``feature`` is the one that differs most, by ``deviation``
    of its spread at most voxels (all but one in a thousand: two equal eigenvalues leave a direction open)."""

    same_bits: bool
    deviation: float = 0.0
    feature: str = ""

    @property
    def said(self) -> str:
        if self.same_bits:
            return "its features are the processor's, bit for bit"
        kind = "rounding" if self.deviation <= ROUNDING else "wrong values"
        return (
            f"its features are not the processor's bit for bit ({kind}: {self.feature} differs by "
            f"{self.deviation:.1e} of its spread)"
        )


def check(gpu: Backend) -> Check:
    """Compute a small generated volume both ways: every voxel as one block, and samples of it in several blocks."""
    volume, _ = make_case((EDGE, EDGE, EDGE), scroll=1, seed=1)
    reference, names = measure_reference(volume), feature_names()
    index = np.random.default_rng(0).choice(volume.size, SAMPLES, replace=False)
    found = []
    for how in (backend(), gpu):
        ((_, dense, slopes),) = iter_blocks(volume, reference, names, block=EDGE, how=how)
        samples = sample_features(volume, reference, names, index, block=BLOCK, how=how)
        found.append([*dense.reshape(len(names), -1), *slopes.reshape(len(names), -1), *samples])
    if all(np.array_equal(one, other) for one, other in zip(*found, strict=True)):
        return Check(True)
    apart = [_apart(one, other) for one, other in zip(*found, strict=True)]
    worst = int(np.argmax(apart))
    rows = [*names, *(f"slope of {name}" for name in names)]
    return Check(False, apart[worst], rows[worst % len(rows)])


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """How far values differ at most voxels, over their spread."""
    difference = np.abs(one.astype(np.float64) - other)
    if not np.isfinite(difference).all():
        return float("inf")
    return float(np.quantile(difference, 0.999) / max(float(one.std()), 1e-30))


def open_gpu(index: int) -> tuple[Gpu | None, str]:
    """A GPU that computes the features with the processor's bits; or None, and why not.

    Where its kernels of the smoothing fail it is tried without them, which is slower.
    """
    gpu, said = _opened(index, fused=True)
    if gpu is None and (other := _opened(index, fused=False))[0] is not None:
        return other[0], f"{other[1]}, with slower smoothing: {said}"
    return gpu, said


def _opened(index: int, *, fused: bool) -> tuple[Gpu | None, str]:
    try:
        gpu = Gpu(index, fused=fused)
    except ImportError as error:
        return None, f"CuPy cannot be used: {error}"
    except Exception as error:  # CUDA's, CuPy's and NVRTC's are of many kinds
        return None, f"CuPy cannot use GPU {index}: {in_words(error, WORDS)}"
    try:
        found = check(gpu)
    except Exception as error:
        return None, f"GPU {index} cannot compute features: {in_words(error, WORDS)}"
    finally:
        gpu.release()
        gpu.seconds = 0.0
    if not found.same_bits:
        return None, f"GPU {index} is not used: {found.said}"
    return gpu, found.said
