"""χ² by its definition, in NumPy and double precision: what the tests compare with.

The interpolant is the real part of the discrete Fourier transform's, with the frequencies of ``fftfreq``,
written as explicit sums over pixels and frequencies.
"""

import numpy as np


def scene(shape, slope=0.0, seed=0, smooth=False):
    """Noise of unit standard deviation with power ∝ k^(−slope); ``smooth`` leaves out half the bandwidth."""
    values = np.random.default_rng(seed).normal(size=shape)
    frequencies = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    k = np.sqrt(sum(f**2 for f in frequencies))
    k.flat[0] = np.inf
    response = k ** (-slope / 2)
    if smooth:
        response = np.where(np.max(np.abs(frequencies), axis=0) < 0.25, response, 0.0)
    values = np.fft.ifftn(np.fft.fftn(values) * response).real
    return values / values.std()


def kernel(n, positions):
    """Weight of each of n periodic samples in the interpolant at real positions, complex."""
    frequencies = np.fft.fftfreq(n)
    distance = np.asarray(positions, float)[:, None] - np.arange(n)
    return np.exp(2j * np.pi * distance[..., None] * frequencies).sum(-1) / n


def interpolate(array, positions):
    """Interpolant on the grid spanned by one vector of positions per axis."""
    result = np.asarray(array, complex)
    for axis, p in enumerate(positions):
        result = np.moveaxis(np.tensordot(kernel(array.shape[axis], p), result, (1, axis)), 0, axis)
    return result.real


def shifted(reference, shift, boundary="wrap"):
    """M(i − s) on the pixels of the frame."""
    frame = reference.shape
    if boundary == "fill":
        reference = np.pad(reference, [(0, n) for n in frame])
    return interpolate(reference, [np.arange(n) - s for n, s in zip(frame, shift, strict=True)])


def moved(reference, shift):
    """M(i − s) by the FFT, for images where explicit sums would take too long."""
    frequencies = np.meshgrid(*map(np.fft.fftfreq, reference.shape), indexing="ij")
    phase = sum(f * s for f, s in zip(frequencies, shift, strict=True))
    return np.fft.ifftn(np.fft.fftn(reference) * np.exp(-2j * np.pi * phase)).real


def smoothed(noise, sigma):
    """White noise behind a Gaussian, on the last two axes, of unit variance again."""
    k2 = sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, noise.shape[-2:]), indexing="ij"))
    response = np.exp(-2 * np.pi**2 * sigma**2 * k2)
    return np.fft.ifft2(np.fft.fft2(noise) * response).real / np.sqrt(np.mean(response**2))


def chi2(reference, image, err, shift, boundary="wrap"):
    """Σ (D − M(i − s))² / σ² over the frame."""
    return float(np.sum(((image - shifted(reference, shift, boundary)) / err) ** 2))


def hessian(function, point, step):
    """Second derivatives by central differences of fourth order, shape ``(D, D)``."""
    weights = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
    unit = step * np.eye(len(point))

    def slope(axis, at):
        return sum(w * function(at + k * unit[axis]) for k, w in weights.items()) / step

    result = [
        [sum(w * slope(b, point + k * unit[a]) for k, w in weights.items()) / step for b in range(len(point))]
        for a in range(len(point))
    ]
    return np.array(result)
