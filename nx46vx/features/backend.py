"""How features are computed: by compiled code where it can be had, else on arrays. Either way the bits are the same."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nx46vx.features.arrays import Arrays
from nx46vx.features.once import once
from nx46vx.features.pool import HALO, feature_names
from nx46vx.features.smoothing import Window

if TYPE_CHECKING:
    from nx46vx.features.reference import VolumeReference


class BlockFeatures(Protocol):
    """Features of one block of a volume and of one voxel around it."""

    def planes(self, start: int, stop: int) -> Iterator[Any]:
        """Features (F, y + 2, x + 2) float32 of the volume's planes from ``start`` to ``stop``, one after the other.

        The planes are the block's, or next to them; around a plane lies one more voxel, at the volume's border the
        nearest one again.
        """
        ...

    def points(self, z: Any, y: Any, x: Any) -> Any:
        """Features (F, n) float32 at voxels of the volume that lie in the block or next to it (int64, (n,) each)."""
        ...


class Backend(Protocol):
    """One way of computing."""

    @property
    def name(self) -> str: ...

    def block(
        self, volume: np.ndarray, window: Window, reference: VolumeReference, names: Sequence[str], *, threads: int = 1
    ) -> BlockFeatures:
        """The features ``names`` of a block of a volume, (z, y, x) uint8; ``threads`` share the work."""
        ...

    def slopes(self, before: Any, here: Any, after: Any) -> Any:
        """Gradient magnitudes (F, y, x) of a plane of features (F, y + 2, x + 2), by it and its neighbours along z."""
        ...

    def quadratic(self, before: Any, here: Any, after: Any, terms: np.ndarray, constant: float) -> Any:
        """constant + sum over features of (a s + b) s + c g, (y, x) float32; g is the gradient magnitude.

        ``terms`` (F, 4) float32 holds shift, a, b and c of each feature; s = feature - shift.
        """
        ...


@once
def backend() -> Backend:
    """The fastest way of computing that there is."""
    return compiled()[0] or Arrays()


@once
def compiled() -> tuple[Backend | None, str]:
    """The compiled code, tried once against the arrays; or None, and the reason."""
    try:
        found: Backend = importlib.import_module("nx46vx.features.compiled").Compiled()
        _check(found)
    except Exception as error:  # of whatever class LLVM chooses
        return None, f"the compiled code cannot be had: {type(error).__name__}: {error}"
    return found, "it gives the arrays' bits"


def _check(found: Backend) -> None:
    """Compare a small volume's features, gradients and a quadratic form with the arrays', bit for bit.

    Raises:
        RuntimeError: they differ.
    """
    from nx46vx.features.reference import VolumeReference

    rng = np.random.default_rng(0)
    edge = 2 * HALO
    volume = rng.integers(1, 255, (7, 9, edge + 6)).astype(np.uint8)
    reference = VolumeReference(120.0, 50.0, (0.6, 0.0, -0.8), -1)
    window = (slice(1, 5), slice(0, 9), slice(3, edge))
    terms = rng.standard_normal((len(feature_names()), 4)).astype(np.float32)
    places = np.array([1, 5, 2]), np.array([0, 8, 4]), np.array([2, edge, edge - 3])
    results = []
    ways: list[Backend] = [Arrays(), found]
    for one in ways:
        block = one.block(volume, window, reference, feature_names())
        planes = list(block.planes(0, 6))
        three = planes[0], planes[1], planes[2]
        results.append([*planes, block.points(*places), one.slopes(*three), one.quadratic(*three, terms, 0.5)])
    if not all(np.array_equal(a, b) for a, b in zip(*results, strict=True)):
        raise RuntimeError("the compiled code gives other bits than the arrays")
