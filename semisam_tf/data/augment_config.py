"""Every augmentation with its strength, and the presets. All strengths at 0 (or empty, or False) switch it off."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from semisam_tf.config import Config


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths and probabilities; intensity strengths are for a z-scored image.

    Attributes:
        crop: The patch lies anywhere in the scan; off: in its middle, whatever the labels are.
        flip: Axes that are mirrored, each with probability 1/2: any of the letters x, y, z.
        rotate90: Quarter turns in the xy plane, 0 to 3 with equal probability (exact; supposes equal x, y spacing).
        rotation_deg: Largest angle about each of the three axes, degrees.
        scale: Largest relative change of size, drawn per axis (0.15: between 1/1.15 and 1.15).
        affine_probability: How often rotation and scale are drawn at all.
        elastic_vox: Standard deviation of the control points' displacement, voxels.
        elastic_spacing_vox: Distance of the control points, voxels.
        elastic_probability: How often.
        gamma: Largest |log exponent|; applied to the patch's own range.
        contrast: Largest |log factor| about the patch's mean.
        brightness: Largest shift, standard deviations of the scan.
        noise: Largest standard deviation of white noise, standard deviations of the scan.
        blur: Largest sigma of a Gaussian, voxels.
        bias_field: Largest |log| coefficient of a smooth multiplicative field (polynomial of order 3).
        style: Largest share of the way from the scan's own intensities to those of another training scan, by matching
            their quantiles; labelled and unlabelled scans lend theirs alike.
        *_probability: How often the transform before it is applied.
    """

    crop: bool = True
    flip: str = ""
    rotate90: bool = False
    rotation_deg: float = 0.0
    scale: float = 0.0
    affine_probability: float = 1.0
    elastic_vox: float = 0.0
    elastic_spacing_vox: float = 16.0
    elastic_probability: float = 0.3
    gamma: float = 0.0
    gamma_probability: float = 0.5
    contrast: float = 0.0
    contrast_probability: float = 0.5
    brightness: float = 0.0
    brightness_probability: float = 0.5
    noise: float = 0.0
    noise_probability: float = 0.3
    blur: float = 0.0
    blur_probability: float = 0.2
    bias_field: float = 0.0
    bias_field_probability: float = 0.5
    style: float = 0.0
    style_probability: float = 0.5

    def __post_init__(self) -> None:
        if set(self.flip) - set("xyz") or len(set(self.flip)) != len(self.flip):
            raise ValueError(f"Expected flip to be letters of 'xyz', each once. Received: flip={self.flip!r}.")
        if self.elastic_spacing_vox < 2:
            raise ValueError(f"Expected elastic_spacing_vox >= 2. Received: {self.elastic_spacing_vox}.")
        for field in fields(self):
            value = getattr(self, field.name)
            highest = 1.0 if field.name.endswith("_probability") else float("inf")
            if isinstance(value, float | int) and not 0 <= value <= highest:
                raise ValueError(f"Expected {field.name} from 0 to {highest}. Received: {field.name}={value}.")


AUGMENT_PRESETS: dict[str, AugmentConfig] = {
    "none": AugmentConfig(),
    # Reference: UA-MT and SemiSAM, random crop, quarter turn and flip in the xy plane.
    # Departs: each axis is flipped with probability 1/2; theirs flips exactly one, so a patch is always mirrored.
    "paper": AugmentConfig(flip="xy", rotate90=True),
    # For one or a few labelled scans. No flips: position in the body tells the organ from its neighbours.
    "strong": AugmentConfig(
        rotation_deg=15.0,
        scale=0.2,
        affine_probability=0.8,
        gamma=0.4,
        contrast=0.3,
        brightness=0.3,
        noise=0.2,
        blur=1.0,
        bias_field=0.4,
    ),
}

# What switches each augmentation on and off by name: its fields and their values when it is on. The first field is
# its strength.
AUGMENTATIONS: dict[str, dict[str, bool | float | str]] = {
    "crop": {"crop": True},
    "flip": {"flip": "xyz"},
    "rotate90": {"rotate90": True},
    "affine": {"rotation_deg": 15.0, "scale": 0.2},
    "rotation": {"rotation_deg": 15.0},
    "scale": {"scale": 0.2},
    "elastic": {"elastic_vox": 3.0},
    "gamma": {"gamma": 0.4},
    "contrast": {"contrast": 0.3},
    "brightness": {"brightness": 0.3},
    "noise": {"noise": 0.2},
    "blur": {"blur": 1.0},
    "bias_field": {"bias_field": 0.4},
    "style": {"style": 1.0},
}


def augment_config(preset: str, on: str = "", off: str = "") -> AugmentConfig:
    """A preset with augmentations switched on and off by name.

    Args:
        preset: Name in AUGMENT_PRESETS.
        on: Names of AUGMENTATIONS separated by commas, each alone (usual strength) or with a strength, as in
            `elastic,gamma=0.6,flip=xy`.
        off: Names separated by commas.

    Raises:
        ValueError: Unknown preset or name, something both on and off, or a strength that is no number.
    """
    if preset not in AUGMENT_PRESETS:
        raise ValueError(f"--augment: expected one of {', '.join(AUGMENT_PRESETS)}. Received: {preset!r}.")
    changes: dict[str, Any] = {}
    for word in _words(off):
        changes |= {field: type(usual)() for field, usual in _fields_of("--augment_off", word).items()}
    for word in _words(on):
        new = _strengths(word)
        if changes.keys() & new.keys():
            raise ValueError(
                "--augment_on, --augment_off: expected each augmentation to be named once. "
                f"Received: augment_on={on!r}, augment_off={off!r}."
            )
        changes |= new
    return replace(AUGMENT_PRESETS[preset], **changes)


def augment_of(config: Config) -> AugmentConfig:
    """The augmentation of a run; raises what `augment_config` does."""
    return augment_config(config.augment, on=config.augment_on, off=config.augment_off)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _fields_of(flag: str, name: str) -> dict[str, bool | float | str]:
    if name not in AUGMENTATIONS:
        raise ValueError(f"{flag}: expected names among {', '.join(AUGMENTATIONS)}. Received: {name!r}.")
    return AUGMENTATIONS[name]


def _strengths(word: str) -> dict[str, Any]:
    """Fields that `name` or `name=strength` sets."""
    name, equals, text = word.partition("=")
    usual = _fields_of("--augment_on", name)
    if not equals:
        return dict(usual)
    field, value = next(iter(usual.items()))
    if isinstance(value, bool) or len(usual) > 1:
        raise ValueError(f"--augment_on: {name} has no single strength; write it alone. Received: {word!r}.")
    try:
        return {field: type(value)(text)}
    except ValueError:
        raise ValueError(f"--augment_on: expected {name}=NUMBER. Received: {word!r}.") from None
