"""How likely chance makes unrelated images match as well as these two do.

Three ways lead to a good match by chance, and the answer is the likeliest of the first and the less likely of
the others. Many details: the correlation coefficient of two random fields is large at some shift. Few
details: a smooth scene, or a small overlap, has so little in it that some place of the other is like it. One
source: a star is like another.
"""

from __future__ import annotations

from functools import partial, reduce
from math import log
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .layout import Spread
from .passes import block_sums, count, neighbours, sum_all
from .spectrum import contract, half_weights, squared
from .terms import Chi2Terms, Matched

SINGLE = 0.02
"""Weight of the chance that a single source in either frame is another of like brightness."""
LIKE = 0.03
"""Chance that a source has its like, in place and brightness, in an unrelated image of few."""
CELL = 4
"""Pixels along each axis of the cells, two by two of which a compact source is seen in."""
SEEN = 5.0
"""Signal, in noises, of a source that counts."""


class Evidence(NamedTuple):
    """What the residuals at a minimum say about the match."""

    share: Array
    """Number of independent residuals, divided by the number of pixels."""
    log_chance: Array
    """Logarithm of the probability that unrelated images match as well at some shift of the window."""
    news: Array
    """−2 ln of the probability that the details of the reference agree by chance at one shift; details that
    are noise are not counted."""
    log_left: Array
    """Logarithm of the share of the image's power that is left in the residuals."""


class Trial(NamedTuple):
    """What a match was chosen from."""

    settled: Array
    """Whether each shift has pixels of its own."""
    number_of_shifts: Array
    number: Array
    """Pixels that count, an integer."""
    weights: Array | None
    """Of the pixels; None where they are all one."""
    frames: tuple[Spread, Spread] | None
    """How the values of reference and image differ in all of their frames."""
    common: tuple[Spread, Spread] | None
    """The same over the pixels that count."""
    gain: bool
    """Whether it was fitted."""


def trial(terms: Chi2Terms) -> Trial:
    """What the match of a pair was chosen from."""
    grid, pixels, content = terms.grid, terms.pixels, terms.content
    return Trial(
        settled=grid.settled,
        number_of_shifts=grid.number_of_shifts(),
        number=pixels.number,
        weights=pixels.weights,
        frames=content.frames,
        common=content.common,
        gain=terms.plan.gain,
    )


class _Match(NamedTuple):
    """Pixels in units of the errors, about their means, and how they differ."""

    model: Array
    residual: Array
    data: Array
    number: Array
    """Pixels that count."""
    sparse: Array
    """Excess kurtosis of the model, of few sources one over the share of the pixels that they cover."""
    dependent: Array
    """How many times fewer independent terms than modes the sum of model times residual has, for few
    sources."""
    held: bool
    """Whether the residual is that of a gain of one."""


class _Spectra(NamedTuple):
    """Sums over octaves of the power spectra of model, residual and data, and of their products."""

    m: Array
    r: Array
    d: Array
    mm: Array
    mr: Array
    md: Array


def evidence(trial: Trial, matched: Matched) -> Evidence:
    """How many independent residuals a match has, and how likely chance makes one as good."""
    match = _match(trial, matched)
    settled, weights, shape = trial.settled, trial.weights, matched.model.shape
    octaves = _spectra(matched, shape)
    every = _Spectra(*(jnp.sum(x) for x in octaves))
    size = float(np.prod(shape))
    of_residual, of_data = (
        jnp.clip(every.m * x / product / size, 1 / match.number, 1.0)
        for x, product in ((every.r, every.mr), (every.d, every.md))
    )
    share = of_residual / match.dependent
    trials = jnp.log(jnp.maximum(trial.number_of_shifts * of_data, 1.0))
    nu = match.number * jnp.sqrt(share * of_data / match.dependent)
    many = trials + _log_correlated(match, nu)
    # Weights and the edges of a frame make detail in every octave of what has none.
    by_detail = octaves if weights is None else _Spectra(*(x[None] for x in every))
    few = _log_few(match, by_detail, every, match.number / size)
    single = _log_single(match, every)
    places = jnp.where(settled, _places(trial, match), 0.0)
    # By Monte Carlo half of the places are as good as they might be.
    few += jnp.where(settled, jnp.log((places + SINGLE) / 2), trials)
    # Of a whole period a smooth scene may be one wave, which is like every other.
    common = jnp.where(settled, SINGLE, jnp.maximum(SINGLE, 1 / (1 + match.sparse)))
    single += jnp.log(jnp.where(settled, (places + common) / 2, common))
    log_chance = jnp.logaddexp(many, jnp.minimum(few, single))
    news = -_details(match, every, match.number / size) * _log_unexplained(every)
    log_left = jnp.log(jnp.clip(every.r / every.d, jnp.finfo(share.dtype).eps, 1.0))
    return Evidence(share, jnp.minimum(log_chance, 0.0), news, log_left)


def _match(trial: Trial, matched: Matched) -> _Match:
    # How much chance explains is a matter of the best gain and background, whatever is held.
    model, residual, data, *_ = matched
    number = jnp.maximum(trial.number, 1).astype(data.dtype)

    # Unequal weights make few of the pixels count, without a source.
    weights = jnp.ones_like(data) if trial.weights is None else trial.weights
    uneven = number * sum_all(weights**2) / _positive(sum_all(weights)) ** 2

    def excess(x: Array) -> Array:
        kurtosis = number * sum_all(x**4) / _positive(sum_all(x**2)) ** 2
        return jnp.maximum(kurtosis / jnp.maximum(uneven, 1.0) - 3, 0.0)

    sparse = excess(model)
    dependent = 1 + jnp.sqrt(sparse * excess(residual)) / 2
    return _Match(model, residual, data, number, sparse, dependent, not trial.gain)


def _spectra(matched: Matched, shape: tuple[int, ...]) -> _Spectra:
    spectra = matched.model_spectrum, matched.residual_spectrum, matched.data_spectrum
    m, *others = lax.optimization_barrier(tuple(map(squared, spectra)))
    powers = jnp.stack([m, *others, m**2, *(m * x for x in others)])
    return _Spectra(*_positive(jax.vmap(partial(by_octave, shape=shape))(powers)))


def _log_correlated(match: _Match, nu: Array) -> Array:
    """Logarithm of ``(1 − r²)^((ν − 1)/2) / 2``, at least the probability of a correlation coefficient r.

    ν is the number of independent terms of ``Σ m d``, m the reference and d the image: the sum of their power
    spectra's products says how large chance makes it. Those of ``Σ m r``, r the residual, are as many as
    pixels for a match, whose residuals are the noise, and those of a wrong match hold the scene. By Monte
    Carlo the geometric mean of the two is calibrated.
    """
    return log(0.5) + (nu - 1) / 2 * _log_left(match)


def _log_left(match: _Match) -> Array:
    """``ln(1 − r²)`` of the correlation coefficient."""
    energy, explained = sum_all(match.data**2), sum_all(match.model**2)
    cross = jnp.maximum(sum_all(match.model * match.data), 0.0)
    coefficient = cross / (jnp.sqrt(_positive(explained)) * jnp.sqrt(_positive(energy)))
    return jnp.log(jnp.clip((1 - coefficient) * (1 + coefficient), 4 * jnp.finfo(cross.dtype).eps, 1.0))


def _log_unexplained(spectra: _Spectra) -> Array:
    """Logarithm of the share of the image that is unexplained where the reference has its power."""
    return jnp.log(jnp.clip(spectra.mr / spectra.md, 4 * jnp.finfo(spectra.mr.dtype).eps, 1.0))


def _details(match: _Match, spectra: _Spectra, share: Array) -> Array:
    """Independent values of the model: modes, by their power, fewer for few sources."""
    return share * spectra.m**2 / spectra.mm / (1 + match.sparse / 2)


def _log_few(match: _Match, octaves: _Spectra, every: _Spectra, share: Array) -> Array:
    """Logarithm of the probability that what details a reference has agree that well, at one place.

    They do to the share that is unexplained where they have their power, octave by octave, or in all.
    """
    details = _details(match, octaves, share)

    def log_agreed(details: Array, agreed: Array, parameters: int) -> Array:
        """Parameters were chosen to make as many details agree."""
        return jnp.minimum(jnp.sum(details * agreed) - parameters * jnp.min(agreed), 0.0) / 2

    ndim = match.model.ndim
    held = log_agreed(details, _log_unexplained(octaves), ndim)
    free = log_agreed(details, _log_unexplained(_at_best_gain(match, octaves)), ndim + 1)
    in_all = log_agreed(_details(match, every, share), _log_left(match), ndim + 1)
    return jnp.minimum(jnp.minimum(held, free), in_all)


def _at_best_gain(match: _Match, spectra: _Spectra) -> _Spectra:
    """Spectra with the residual ``d − g m`` instead of ``d − m``: noise of a reference draws g from one."""
    cross, explained = sum_all(match.model * match.data), sum_all(match.model**2)
    gain = jnp.where(match.held, jnp.maximum(cross, 0.0) / _positive(explained), 1.0)
    return spectra._replace(mr=(1 - gain) * (spectra.md - gain * spectra.mm) + gain * spectra.mr)


def _log_single(match: _Match, every: _Spectra) -> Array:
    """Logarithm of the probability that one source agrees with one other, and each further one by `LIKE`."""
    noise = sum_all(match.residual**2) / match.number
    others = jnp.maximum(_sources(match.model, match.data, noise) - 1, 0.0)
    # The bumps of a Gaussian field are details more than sources.
    others *= (match.sparse + 1) / (match.sparse + 4)
    # A source says one thing, its brightness, in many modes.
    return (_log_unexplained(every) - jnp.log1p(match.sparse / 2)) / 2 + log(LIKE) * others


def _places(trial: Trial, match: _Match) -> Array:
    """How many overlaps like this the frames have, ``E₁ E₂ / (e₁ e₂) − 1``, of energies in it and in all.

    Nothing disagrees in a small overlap, and the residuals are the noise: what is left out tells.
    """
    frames, common = trial.frames, trial.common
    if frames is None or common is None:
        return jnp.zeros_like(match.number)
    reference, image = common
    left = sum_all(match.residual**2) / _positive(sum_all(match.data**2))
    noise = left * image.energy / match.number
    # Noise of the reference is not known here; at most it is the half of what there is.
    own = jnp.minimum(noise, reference.energy / (2 * match.number))

    def beyond(frame: Spread, common: Spread, noise: Array) -> Array:
        """How much more of a scene is in a frame than in the overlap."""
        inside = _positive(common.energy - match.number * noise)
        return jnp.maximum((frame.energy - frame.number * noise) / inside, 1.0)

    return beyond(frames[0], reference, own) * beyond(frames[1], image, noise) - 1


def _sources(model: Array, data: Array, noise: Array) -> Array:
    """Number of compact sources of the model that the image has too, at a signal of `SEEN` noises.

    A source is the brightest box of two by two cells around, and twice as bright as what surrounds it: an
    extended one says no more than a single one, however many maxima it has.
    """
    cells = jnp.stack([block_sums(x, CELL) for x in (model**2, model * data)])
    power, product = _box_sums(cells, 0, 1)
    seen = product > SEEN * jnp.sqrt(_positive(power) * noise)
    around = _box_sums(cells[:1], -2, 3)[0] / 3**model.ndim
    highest = power
    for axis in range(power.ndim):
        highest = reduce(jnp.maximum, neighbours(highest, -1, 1, axis))
    return count(seen & (power > 2 * around) & (power == highest)).astype(model.dtype)


def _box_sums(x: Array, first: int, last: int) -> Array:
    """Sums over the cells from ``first`` to ``last`` of each one, periodic; one leading axis."""
    for axis in range(1, x.ndim):
        x = reduce(jnp.add, neighbours(x, first, last, axis))
    return x


def by_octave(x: Array, shape: tuple[int, ...]) -> Array:
    """Sums of a half-plane spectrum over octaves of the largest component of the frequency, zero left out."""
    longest = max(shape)
    count = max(int(np.ceil(np.log2(longest / 2))), 1)
    columns = []
    for length in shape:
        harmonic = np.abs(np.fft.fftfreq(length)) * longest
        octave = np.where(harmonic > 0, np.floor(np.log2(np.maximum(harmonic, 1.0))) + 1, 0)
        columns.append(np.eye(count + 1)[np.minimum(octave, count).astype(int)])
    columns[-1] = columns[-1][: shape[-1] // 2 + 1] * half_weights(shape[-1])[:, None]
    table = contract(x, [jnp.asarray(c, x.dtype) for c in columns])
    octave = reduce(np.maximum, np.indices(table.shape)).ravel()
    members = jnp.asarray(octave[:, None] == np.arange(1, count + 1), x.dtype)
    return jnp.dot(table.ravel(), members, precision=lax.Precision.HIGHEST)


def _positive(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)
