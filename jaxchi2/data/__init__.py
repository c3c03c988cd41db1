"""The bundled pair of real images: a piece of the Hubble eXtreme Deep Field in two colours.

Origin, licence and the displacement to expect are in the ``README.md`` beside the files.
"""

from pathlib import Path

import numpy as np

__all__ = ["demo_files", "demo_pair"]


def demo_files() -> tuple[Path, Path]:
    """Say where the two files of the bundled pair lie.

    Returns
    -------
    reference, image : pathlib.Path
        NPY files, each a ``(192, 192)`` array of 8-bit integers.
    """
    folder = Path(__file__).parent
    return folder / "hubble_xdf_green.npy", folder / "hubble_xdf_blue.npy"


def demo_pair() -> tuple[np.ndarray, np.ndarray]:
    """Load the bundled pair: the same galaxies in green and in blue light.

    Returns
    -------
    reference, image : numpy.ndarray
        Arrays of shape ``(192, 192)`` and type ``uint8``. The image is displaced from the reference by about
        ``(+3.05, -5.01)`` pixels in ``(y, x)``.

    Examples
    --------
    >>> from jaxchi2.data import demo_pair
    >>> reference, image = demo_pair()
    >>> reference.shape
    (192, 192)
    """
    reference, image = demo_files()
    return np.load(reference), np.load(image)
