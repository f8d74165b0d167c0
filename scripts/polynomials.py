"""The polynomials of src/kernels/body.rs: the best of their degree, by Lawson's weights, and their errors in f32.

    polynomials.py          needs numpy
"""

import math

import numpy as np
from numpy.polynomial import chebyshev


def best(basis, values, weight):
    """Coefficients of the least largest error: least squares whose weights grow where the error is large (Lawson 1961)."""
    lawson = np.ones(len(values))
    for _ in range(100):
        w = weight * np.sqrt(lawson)
        found = np.linalg.lstsq(basis * w[:, None], values * w, rcond=None)[0]
        error = np.abs((basis @ found - values) * weight)
        lawson *= error / error.max() + 1e-3
        lawson /= lawson.max()
    return found


def fma(a, b, c):
    return np.float32(np.float64(a) * np.float64(b) + np.float64(c))


def horner(coefficients, x):
    y = np.full_like(x, np.float32(coefficients[-1]))
    for c in coefficients[-2::-1]:
        y = fma(y, x, np.float32(c))
    return y


nodes = np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)

# 2^r on -1/2..=1/2, 1 at 0; the error relative.
r = nodes / 2
powers = np.vander(r, 6, increasing=True)[:, 1:]
found = np.concatenate([[1.0], best(powers, 2**r - 1, 1 / 2**r)])
x = np.linspace(-0.5, 0.5, 1_000_001).astype(np.float32)
error = np.abs(horner(found, x) / 2.0 ** np.float64(x) - 1).max()
print("exp2", [float(np.float32(c)) for c in found[::-1]], f"relative error {error:.1e}")

# x/2 erfc(x / sqrt 2), which is what gelu takes from max(0, x), on 0..=END; in u = 2 x / END - 1.
END, DEGREE = 5.4, 16
erfc = np.vectorize(math.erfc)
x = (nodes + 1) * END / 2
found = chebyshev.cheb2poly(best(chebyshev.chebvander(nodes, DEGREE), x / 2 * erfc(x / math.sqrt(2)), np.ones(4000)))
x = np.linspace(-12, 12, 1_000_001).astype(np.float32)
size = np.minimum(np.abs(x), np.float32(END))
less = horner(found, fma(size, np.float32(2 / END), np.float32(-1)))
error = np.abs((np.maximum(x, 0) - less) - np.float64(x) / 2 * erfc(-np.float64(x) / math.sqrt(2))).max()
print("gelu", [float(np.float32(c)) for c in found[::-1]], f"error {error:.1e}")
