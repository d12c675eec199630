"""Eigenvalues and the principal eigenvector of many symmetric 3x3 matrices at once, in closed form.

Eigenvalues by the trigonometric solution of the characteristic cubic (O. K. Smith, Comm. ACM 4(4):168, 1961) on the
deviator divided by its norm, so that the result is covariant with the matrices' scale. Use float64: with it the error
is about 1e-8 of the norm at worst (two equal eigenvalues), 1e-15 otherwise.

Only sums, products, quotients and square roots occur, which IEEE 754 rounds in one way: the same matrices give the
same bits on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy import sqrt, where

#: Components of a symmetric matrix, in the order every function here takes them.
COMPONENTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
#: Relative gap below which two eigenvalues count as one.
DEGENERATE = 1e-6
_ROOT_3 = 1.7320508075688772

#: cos(2/3 arccos(u)) as a polynomial in 2 u - 1 for u in [0, 1], lowest power first: Chebyshev interpolation, off by
#: less than 3e-16 and exact at u = 1.
_COSINE = (
    0.7660444431189779, 0.2474090663228531, -0.015509188436466925, 0.0024663528150807865, -0.0005041246916471823,
    0.00011642545310520361, -2.8919931061417995e-05, 7.541076906895577e-06, -2.0358967113961453e-06,
    5.6415984269464e-07, -1.5946504043853947e-07, 4.583483187568922e-08, -1.348180209578561e-08, 3.972853735371566e-09,
    -1.0526658241086324e-09, 3.1461757039177313e-10, -1.6358250988858183e-10, 4.9908110575962183e-11,
)  # fmt: skip


class Eigenvalues(NamedTuple):
    """In falling order; ``size`` is the deviator's norm / sqrt(6), zero exactly for multiples of the identity."""

    l1: Any
    l2: Any
    l3: Any
    size: Any


def eigenvalues(matrix: Sequence[Any]) -> Eigenvalues:
    """Eigenvalues of matrices given by their six components (``COMPONENTS``), arrays of one shape."""
    return Eigenvalues(*spectrum(*matrix))


def spectrum(a00: Any, a11: Any, a22: Any, a01: Any, a02: Any, a12: Any) -> tuple[Any, Any, Any, Any]:
    """l1 >= l2 >= l3, and the deviator's norm / sqrt(6)."""
    mean = (a00 + a11 + a22) / 3.0
    b00, b11, b22 = a00 - mean, a11 - mean, a22 - mean
    size = sqrt((b00 * b00 + b11 * b11 + b22 * b22 + 2.0 * (a01 * a01 + a02 * a02 + a12 * a12)) / 6.0)
    inverse = 1.0 / where(size > 0.0, size, 1.0)
    b00, b11, b22 = b00 * inverse, b11 * inverse, b22 * inverse
    b01, b02, b12 = a01 * inverse, a02 * inverse, a12 * inverse
    half_det = 0.5 * (b00 * (b11 * b22 - b12 * b12) - b01 * (b01 * b22 - b12 * b02) + b02 * (b01 * b12 - b11 * b02))
    half_det = where(half_det < 1.0, half_det, 1.0)
    half_det = where(half_det > -1.0, half_det, -1.0)
    # With t = arccos(half_det): cos(t/3) from cos(t/2), of which it is a smooth function, and sin(t/3) from cos(t/3).
    t = 2.0 * sqrt((1.0 + half_det) * 0.5) - 1.0
    cosine = _COSINE[17] * t + _COSINE[16]
    cosine = cosine * t + _COSINE[15]
    cosine = cosine * t + _COSINE[14]
    cosine = cosine * t + _COSINE[13]
    cosine = cosine * t + _COSINE[12]
    cosine = cosine * t + _COSINE[11]
    cosine = cosine * t + _COSINE[10]
    cosine = cosine * t + _COSINE[9]
    cosine = cosine * t + _COSINE[8]
    cosine = cosine * t + _COSINE[7]
    cosine = cosine * t + _COSINE[6]
    cosine = cosine * t + _COSINE[5]
    cosine = cosine * t + _COSINE[4]
    cosine = cosine * t + _COSINE[3]
    cosine = cosine * t + _COSINE[2]
    cosine = cosine * t + _COSINE[1]
    cosine = cosine * t + _COSINE[0]
    cosine = where(cosine < 1.0, cosine, 1.0)
    sine = sqrt((1.0 - cosine) * (1.0 + cosine))
    l1 = mean + 2.0 * size * cosine
    l2 = mean + size * (_ROOT_3 * sine - cosine)
    l3 = mean - size * (_ROOT_3 * sine + cosine)
    return l1, l2, l3, size


def principal_eigenvector(matrix: Sequence[Any], eigen: Eigenvalues) -> tuple[Any, Any, Any]:
    """Unit eigenvector of the largest eigenvalue, as three arrays; its sign is arbitrary.

    The eigenvector is orthogonal to the rows of A - l1 I, so it is the longest of their cross products. Where the two
    largest eigenvalues agree, a fixed vector of their plane is given; for multiples of the identity (1, 0, 0).
    """
    a00, a11, a22, a01, a02, a12 = matrix
    l1, _, l3, size = eigen
    v0, v1, v2, square = null_vector(a00 - l1, a11 - l1, a22 - l1, a01, a02, a12)
    length = sqrt(square)
    inverse = 1.0 / where(length > 0.0, length, 1.0)
    equal = length <= DEGENERATE * size * size
    u0, u1, u2 = in_plane(a00, a11, a22, a01, a02, a12, l3, size)
    return where(equal, u0, v0 * inverse), where(equal, u1, v1 * inverse), where(equal, u2, v2 * inverse)


def null_vector(c00: Any, c11: Any, c22: Any, c01: Any, c02: Any, c12: Any) -> tuple[Any, Any, Any, Any]:
    """Longest cross product of two rows of a singular symmetric matrix, and its squared length."""
    # The three cross products are the columns of the (symmetric) adjugate: six different numbers.
    j00, j11, j22 = c11 * c22 - c12 * c12, c00 * c22 - c02 * c02, c00 * c11 - c01 * c01
    j01, j02, j12 = c02 * c12 - c01 * c22, c01 * c12 - c02 * c11, c01 * c02 - c00 * c12
    s01, s02, s12 = j01 * j01, j02 * j02, j12 * j12
    n0, n1, n2 = j00 * j00 + s01 + s02, s01 + j11 * j11 + s12, s02 + s12 + j22 * j22
    longer = where(n1 > n0, n1, n0)
    second, third = n1 > n0, n2 > longer
    v0 = where(third, j02, where(second, j01, j00))
    v1 = where(third, j12, where(second, j11, j01))
    v2 = where(third, j22, where(second, j12, j02))
    return v0, v1, v2, where(third, n2, longer)


def in_plane(
    a00: Any, a11: Any, a22: Any, a01: Any, a02: Any, a12: Any, l3: Any, size: Any
) -> tuple[Any, Any, Any]:  # fmt: skip
    """A unit vector of the plane of two equal largest eigenvalues: orthogonal to the third eigenvector."""
    w0, w1, w2, square = null_vector(a00 - l3, a11 - l3, a22 - l3, a01, a02, a12)
    inverse = 1.0 / where(square > 0.0, sqrt(square), 1.0)
    w0, w1, w2 = w0 * inverse, w1 * inverse, w2 * inverse
    # e0 - (e0.w) w, unless w lies close to e0; then e1 - (e1.w) w.
    along = w0 * w0 > 0.5
    u0 = where(along, -w1 * w0, 1.0 - w0 * w0)
    u1 = where(along, 1.0 - w1 * w1, -w0 * w1)
    u2 = where(along, -w1 * w2, -w0 * w2)
    inverse = 1.0 / sqrt(u0 * u0 + u1 * u1 + u2 * u2)
    isotropic = size == 0.0
    return where(isotropic, 1.0, u0 * inverse), where(isotropic, 0.0, u1 * inverse), where(isotropic, 0.0, u2 * inverse)


def turned(v0: Any, v1: Any, v2: Any, d0: Any, d1: Any, d2: Any) -> tuple[Any, Any, Any]:
    """v, or -v if it points away from d."""
    towards = d0 * v0 + d1 * v1 + d2 * v2 >= 0.0
    return where(towards, v0, -v0), where(towards, v1, -v1), where(towards, v2, -v2)
