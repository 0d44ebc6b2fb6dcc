"""Intensity augmentation of z-scored patches."""

from __future__ import annotations

import functools

import numpy as np
from scipy import ndimage

from semisam_tf.data.augment_config import AugmentConfig

_FIELD_ORDER = 3
_QUANTILES = np.linspace(0.0, 1.0, 65)


def augment_intensity(rng: np.random.Generator, image: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Changes the intensities of a patch at random; whether a transform is applied is drawn once for all channels.

    The order follows the physics: field and tissue contrast first, then the point spread, then noise.

    Args:
        rng: Source of all randomness.
        image: float32 [X, Y, Z, C], z-scored per channel over its scan. Not changed.
        config: Strengths and probabilities.

    Returns:
        float32 [X, Y, Z, C].
    """
    applied = {
        name: getattr(config, name) > 0 and rng.random() < getattr(config, f"{name}_probability")
        for name in ("bias_field", "gamma", "contrast", "brightness", "blur", "noise")
    }
    result = np.array(image, np.float32)
    for channel in range(image.shape[-1]):
        patch = np.ascontiguousarray(result[..., channel])
        if applied["bias_field"]:
            patch = multiply_field(patch, rng.uniform(-1, 1, [_FIELD_ORDER + 1] * 3) * config.bias_field)
        if applied["gamma"]:
            patch = change_gamma(patch, float(np.exp(rng.uniform(-config.gamma, config.gamma))))
        if applied["contrast"]:
            mean = np.float32(patch.mean())
            patch = (patch - mean) * np.float32(np.exp(rng.uniform(-config.contrast, config.contrast))) + mean
        if applied["brightness"]:
            patch = patch + np.float32(rng.uniform(-config.brightness, config.brightness))
        if applied["blur"]:
            patch = ndimage.gaussian_filter(patch, rng.uniform(0, config.blur), truncate=3.0)
        if applied["noise"]:
            sigma = np.float32(rng.uniform(0, config.noise))
            patch = patch + sigma * rng.standard_normal(patch.shape, np.float32)
        result[..., channel] = patch
    return result


def scan_quantiles(image: np.ndarray) -> np.ndarray:
    """Quantiles of a scan [X, Y, Z, C] by channel, float32 [C, 65] from its minimum to its maximum."""
    return np.quantile(image.reshape(-1, image.shape[-1]), _QUANTILES, axis=0).T.astype(np.float32)


def match_quantiles(patch: np.ndarray, own: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Intensities of a patch moved towards those that voxels of the same rank have in another scan.

    Reference: histogram matching (Nyul and Udupa 1999), `share` of the way.

    Args:
        patch: float32 [X, Y, Z, C] of a scan.
        own, other: `scan_quantiles` of that scan and of the other one.
        share: 0 leaves the patch as it is, 1 gives it the other scan's intensities.
    """
    matched = np.stack(
        [np.interp(patch[..., c], own[c], other[c]).astype(np.float32) for c in range(patch.shape[-1])], axis=-1
    )
    return patch + np.float32(share) * (matched - patch)


def change_gamma(patch: np.ndarray, exponent: float) -> np.ndarray:
    """Raises the patch, as a share of its own range, to `exponent`; minimum and maximum stay where they are."""
    low, high = patch.min(), patch.max()
    if low == high:
        return patch
    share = (patch - low) / (high - low)
    return np.power(share, np.float32(exponent), out=share) * (high - low) + low


def multiply_field(patch: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Multiplies a patch, above its minimum, by exp of a polynomial that is smooth over the patch.

    A coil's field multiplies the signal, and the signal's zero is the darkest voxel, not the z-score's zero.

    Args:
        patch: float32 [X, Y, Z].
        coefficients: float [4, 4, 4], of Legendre polynomials of degree i, j, k; terms with i + j + k outside 1..3
            are ignored. The terms' weights fall with their number so that strength means the same for any order.
    """
    degree = np.add.outer(np.add.outer(np.arange(_FIELD_ORDER + 1), np.arange(_FIELD_ORDER + 1)), np.arange(4))
    kept = (degree >= 1) & (degree <= _FIELD_ORDER)
    weights = np.where(kept, coefficients, 0) / np.sqrt(kept.sum() / 3)
    # Separable: three small products instead of a sum over monomials on the whole patch.
    field = weights.astype(np.float32)
    for axis in (2, 1, 0):
        field = np.moveaxis(np.tensordot(_legendre(patch.shape[axis]), field, axes=(1, axis)), 0, axis)
    low = patch.min()
    return (patch - low) * np.exp(field, dtype=np.float32) + low


@functools.lru_cache(maxsize=64)
def _legendre(size: int) -> np.ndarray:
    positions = (np.arange(size) + 0.5) / size * 2 - 1
    return np.polynomial.legendre.legvander(positions, _FIELD_ORDER).astype(np.float32)
