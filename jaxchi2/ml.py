"""Registration in an input pipeline of `grain <https://google-grain.readthedocs.io>`_, the extra ``ml``."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

try:
    import grain
except ImportError as error:
    raise ImportError("jaxchi2.ml needs grain: pip install 'jaxchi2[ml]'") from error

from .checks import as_real_array, refuse
from .pipeline import register_and_align

__all__ = ["RegisterAndAlign"]


class RegisterAndAlign(grain.transforms.Map):
    """A grain transformation that brings the images of an element onto a reference.

    An element is a dict. The image under a key is replaced by the aligned one, and ``"shift"``,
    ``"covariance"`` and ``"status"`` are added; all as NumPy arrays. Images may be batched: after
    ``.batch(n)`` one call does them all, which is faster.

    JAX computes in the process that iterates. Put this after ``mp_prefetch``, not before: each worker
    process would claim the accelerator for itself.

    Parameters
    ----------
    reference : array_like or str
        The reference, or the key under which every element has one, alone for all images of the element.
    image : str
        Key of the image, or of the batch of images.
    err : array_like, str or None
        As of `jaxchi2.register_and_align`, or the key under which every element has it.
    **options
        Of `jaxchi2.register_and_align`.

    Examples
    --------
    >>> import grain
    >>> import numpy as np
    >>> scene = np.random.default_rng(0).normal(size=(32, 32))
    >>> frames = [{"image": np.roll(scene, k, axis=0)} for k in range(4)]
    >>> pipeline = grain.MapDataset.source(frames).batch(4).map(RegisterAndAlign(scene, boundary="wrap"))
    >>> print(np.round(pipeline[0]["shift"][:, 0]))
    [0. 1. 2. 3.]
    """

    def __init__(
        self,
        reference: ArrayLike | str,
        image: str = "image",
        err: ArrayLike | str | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(image, str):
            refuse("image", "the key of an image", image, TypeError)
        if not isinstance(reference, str):
            as_real_array(reference, "reference")
        if err is not None and not isinstance(err, str):
            as_real_array(err, "err")
        self._reference, self._image, self._err = reference, image, err
        self._compiled = jax.jit(partial(register_and_align, **options))

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        """Align one element."""
        for key in (self._reference, self._image, self._err):
            if isinstance(key, str) and (not isinstance(element, dict) or key not in element):
                refuse("element", f"a dict with the key {key!r}", element)
        reference, err = (element[x] if isinstance(x, str) else x for x in (self._reference, self._err))
        aligned, found = self._compiled(reference, element[self._image], err)
        measured = {"shift": found.shift, "covariance": found.covariance, "status": found.status}
        return element | jax.tree.map(np.asarray, {self._image: aligned} | measured)
