"""The feature pool: which per-voxel features there are, in the one order that everything else follows.

All are computed on ``v = (ct - median) / scale`` (robust, per volume). Scales (``_s2`` is sigma or rho = 2) are in
voxels. With n the sheet normal and d the volume's direction (see ``reference``):

- G(s) is v smoothed by a Gaussian; gradients are central differences of G(s); log is s^2 times the sum of its second
  differences at a distance of min(s, 2).
- J(r) is the structure tensor, the outer product of the gradient of G(1), smoothed over r; l1 >= l2 >= l3 are its
  eigenvalues; planarity = (l1 - l2) / (l1 + l2 + l3 + 1e-6).
- n is the eigenvector of l1 of J(NORMAL_SCALE), signed such that n.d > 0.
- m is n times the volume's ``sign_skew``: it points to the sheets' sharper face. signed = m . grad G(s).
- face = the same derivative two voxels back, (G(p - m) - G(p - 3m)) / 2: voxels just inside the sharper face of a sheet
  see that face. ridge = G(p + 3n) + G(p - 3n) - 2 G(p). The grey values across the sheet, G(p + k m) with k = 2 and 4,
  enter as stepK = G(p + k m) - G(p - k m) and bendK = G(p + k m) + G(p - k m) - 2 G(p), which resemble one another less
  than the values themselves. All of these interpolate linearly.
"""

from __future__ import annotations

from dataclasses import dataclass

from nx46vx.features.fields import TENSOR_GRADIENT
from nx46vx.features.smoothing import radius

#: Raise when a feature, its order or its arithmetic changes: cached features of other versions are then not used.
POOL_VERSION = 3
NORMAL_SCALE = 4
PLANARITY_EPSILON = 1e-6


@dataclass(frozen=True)
class FeatureSpec:
    """One feature: ``name``, ``family`` (the kind of filter), what it means, and its scale in voxels."""

    name: str
    family: str
    description: str
    scale: int


def _family(family: str, scales: tuple[int, ...], description: str) -> tuple[FeatureSpec, ...]:
    return tuple(FeatureSpec(f"{family}_s{s}", family, description.format(s=s), s) for s in scales)


FEATURES: tuple[FeatureSpec, ...] = (
    *_family("gauss", (1, 2, 4), "grey value smoothed by a Gaussian of sigma {s}"),
    *_family("gradmag", (1, 2), "length of the gradient at sigma {s}"),
    *_family("log", (1, 2, 4), "sigma^2 times the Laplacian at sigma {s}: bright ridges are negative"),
    *_family("planarity", (2, 4), "how much the structure tensor over {s} voxels looks like a sheet, 0 to 1"),
    *_family("signed", (1, 2, 4), "gradient along the normal at sigma {s}, towards the sharper face"),
    *_family("face", (1, 2), "the same gradient two voxels back, sigma {s}"),
    *_family("ridge", (2,), "second difference along the normal over three voxels, sigma {s}: sheets are negative"),
    *_family("step2", (1, 2), "grey value two voxels towards the sharper face less that two voxels back, sigma {s}"),
    *_family("step4", (1, 2), "the same over four voxels, sigma {s}"),
    *_family("bend2", (1, 2), "second difference along the normal over two voxels, sigma {s}"),
    *_family("bend4", (1, 2), "second difference along the normal over four voxels, sigma {s}"),
)

#: Components of n and the derivative along it, for what is measured on whole volumes (see ``reference``): not in the
#: pool.
NORMAL = tuple(
    FeatureSpec(f"normal_{axis}", "normal", f"component of the sheet normal along {axis}", number)
    for number, axis in enumerate("zyx")
)
ALONG = FeatureSpec("along_s1", "along", "gradient along the normal at sigma 1, towards the volume's direction", 1)

#: Voxels that have to be known around a block for its features and their gradients: the structure tensor's chain
#: (smoothing, difference, smoothing) and one voxel for the gradient of the feature.
HALO = radius(TENSOR_GRADIENT) + 1 + radius(4) + 1

_BY_NAME = {spec.name: spec for spec in (*FEATURES, *NORMAL, ALONG)}


def feature_names() -> tuple[str, ...]:
    """Names of the pool, in order."""
    return tuple(spec.name for spec in FEATURES)


def spec_of(name: str) -> FeatureSpec:
    """The feature of that name, or what is measured on whole volumes; KeyError if there is none."""
    return _BY_NAME[name]
