"""The transforms that `image_registration` chooses from fftw3 and numpy; here they are JAX's."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from ...fourier import accept_obsolete

__all__ = ["get_ffts"]


@accept_obsolete(nthreads=0, use_numpy_fft=1)
def get_ffts() -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Return the Fourier transform and its inverse, over all axes.

    Returns
    -------
    fftn, ifftn : callable
        Those of `jax.numpy.fft`.

    Examples
    --------
    >>> import numpy as np
    >>> fftn, ifftn = get_ffts()
    >>> print(ifftn(fftn(np.eye(2))).real)
    [[1. 0.]
     [0. 1.]]
    """
    return jnp.fft.fftn, jnp.fft.ifftn
