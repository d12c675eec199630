"""Eigenvalues and the principal eigenvector of many symmetric 3x3 matrices at once, in closed form.

Eigenvalues by the trigonometric solution of the characteristic cubic (O. K. Smith, Comm. ACM 4(4):168, 1961) on the
deviator divided by its norm, so that the result is covariant with the matrices' scale. Use float64: with it the error
is about 1e-8 of the norm at worst (two equal eigenvalues), 1e-15 otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nx46vx.features.array_namespace import namespace

#: Components of a symmetric matrix, in the order every function here takes them.
COMPONENTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
_DEGENERATE = 1e-6  # relative gap below which two eigenvalues count as one


class Eigenvalues(NamedTuple):
    """In falling order; ``size`` is the deviator's norm / sqrt(6), zero exactly for multiples of the identity."""

    l1: Any
    l2: Any
    l3: Any
    size: Any


def eigenvalues(matrix: Sequence[Any]) -> Eigenvalues:
    """Eigenvalues of matrices given by their six components (``COMPONENTS``), arrays of one shape."""
    a00, a11, a22, a01, a02, a12 = matrix
    xp, _ = namespace(a00)
    mean = (a00 + a11 + a22) / 3
    b00, b11, b22 = a00 - mean, a11 - mean, a22 - mean
    size = xp.sqrt((b00 * b00 + b11 * b11 + b22 * b22 + 2 * (a01 * a01 + a02 * a02 + a12 * a12)) / 6)
    inverse = 1 / xp.where(size > 0, size, 1)
    b00, b11, b22 = b00 * inverse, b11 * inverse, b22 * inverse
    b01, b02, b12 = a01 * inverse, a02 * inverse, a12 * inverse
    half_det = 0.5 * (b00 * (b11 * b22 - b12 * b12) - b01 * (b01 * b22 - b12 * b02) + b02 * (b01 * b12 - b11 * b02))
    angle = xp.arccos(xp.clip(half_det, -1, 1)) / 3
    cosine, sine = xp.cos(angle), xp.sin(angle)
    root3 = 1.7320508075688772
    l1 = mean + 2 * size * cosine
    l2 = mean + size * (root3 * sine - cosine)
    l3 = mean - size * (root3 * sine + cosine)
    return Eigenvalues(l1, l2, l3, size)


def principal_eigenvector(matrix: Sequence[Any], eigen: Eigenvalues) -> tuple[Any, Any, Any]:
    """Unit eigenvector of the largest eigenvalue, as three arrays; its sign is arbitrary.

    The eigenvector is orthogonal to the rows of A - l1 I, so it is the longest of their cross products. Where the two
    largest eigenvalues agree, a fixed vector of their plane is given; for multiples of the identity (1, 0, 0).
    """
    a00, a11, a22, a01, a02, a12 = matrix
    l1, l3, size = eigen.l1, eigen.l3, eigen.size
    xp, _ = namespace(a00)
    v0, v1, v2, square = _null_vector(xp, a00 - l1, a11 - l1, a22 - l1, a01, a02, a12)
    length = xp.sqrt(square)
    poor = length <= _DEGENERATE * size * size
    inverse = 1 / xp.where(length > 0, length, 1)
    v0, v1, v2 = v0 * inverse, v1 * inverse, v2 * inverse
    if bool(poor.any()):
        parts = [part[poor] for part in (a00, a11, a22, a01, a02, a12, l3, size)]
        v0[poor], v1[poor], v2[poor] = _in_plane(xp, *parts)
    return v0, v1, v2


def _null_vector(xp: Any, c00: Any, c11: Any, c22: Any, c01: Any, c02: Any, c12: Any) -> tuple[Any, Any, Any, Any]:
    """Longest cross product of two rows of a singular symmetric matrix, and its squared length."""
    # The three cross products are the columns of the (symmetric) adjugate: six different numbers.
    j00, j11, j22 = c11 * c22 - c12 * c12, c00 * c22 - c02 * c02, c00 * c11 - c01 * c01
    j01, j02, j12 = c02 * c12 - c01 * c22, c01 * c12 - c02 * c11, c01 * c02 - c00 * c12
    s01, s02, s12 = j01 * j01, j02 * j02, j12 * j12
    n0, n1, n2 = j00 * j00 + s01 + s02, s01 + j11 * j11 + s12, s02 + s12 + j22 * j22
    second, third = n1 > n0, n2 > xp.maximum(n0, n1)
    v0 = xp.where(third, j02, xp.where(second, j01, j00))
    v1 = xp.where(third, j12, xp.where(second, j11, j01))
    v2 = xp.where(third, j22, xp.where(second, j12, j02))
    return v0, v1, v2, xp.where(third, n2, xp.where(second, n1, n0))


def _in_plane(
    xp: Any, a00: Any, a11: Any, a22: Any, a01: Any, a02: Any, a12: Any, l3: Any, size: Any
) -> tuple[Any, Any, Any]:
    """A unit vector of the plane of two equal largest eigenvalues: orthogonal to the third eigenvector."""
    w0, w1, w2, square = _null_vector(xp, a00 - l3, a11 - l3, a22 - l3, a01, a02, a12)
    inverse = 1 / xp.where(square > 0, xp.sqrt(square), 1)
    w0, w1, w2 = w0 * inverse, w1 * inverse, w2 * inverse
    # e0 - (e0.w) w, unless w lies close to e0; then e1 - (e1.w) w.
    along = w0 * w0 > 0.5
    u0 = xp.where(along, -w1 * w0, 1 - w0 * w0)
    u1 = xp.where(along, 1 - w1 * w1, -w0 * w1)
    u2 = xp.where(along, -w1 * w2, -w0 * w2)
    inverse = 1 / xp.sqrt(u0 * u0 + u1 * u1 + u2 * u2)
    isotropic = size == 0
    return (
        xp.where(isotropic, 1, u0 * inverse),
        xp.where(isotropic, 0, u1 * inverse),
        xp.where(isotropic, 0, u2 * inverse),
    )
