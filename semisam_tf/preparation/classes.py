"""Which class each value of the masks is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from semisam_tf.options import OptionError
from semisam_tf.preparation.dataset_json import DatasetFacts

_EXAMPLE = "--label_map=255:1 or --label_map=205:1,420:2,600:0 (value:class)"


@dataclass(frozen=True)
class ClassMap:
    """Value of a mask file -> class.

    Attributes:
        pairs: (value, class), sorted; (0, 0) is always there unless another class was given to 0.
        names: (class, name) of foreground classes, where they are known.
    """

    pairs: tuple[tuple[int, int], ...]
    names: tuple[tuple[int, str], ...] = ()

    @property
    def n_classes(self) -> int:
        """Classes with background, at least 2."""
        return max(2, 1 + max(k for _, k in self.pairs))

    def unknown(self, values: Iterable[str]) -> list[int]:
        """The values that have no class."""
        return sorted({int(value) for value in values} - {value for value, _ in self.pairs})

    def class_vox(self, label_vox: dict[str, int]) -> dict[int, int]:
        """Voxels of each foreground class, from the voxels of each value."""
        count = dict.fromkeys(range(1, self.n_classes), 0)
        for value, k in self.pairs:
            if k:
                count[k] += label_vox.get(str(value), 0)
        return count

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Whole numbers [X, Y, Z] -> uint8 [X, Y, Z] of classes."""
        classes = np.zeros(values.shape, np.uint8)
        for value, k in self.pairs:
            if k:
                classes[values == value] = k
        return classes


def parse_label_map(text: str) -> dict[int, int]:
    """Reads "205:1,420:2"; several values may be of one class.

    Raises:
        OptionError: Not of that form, a value twice, or classes with a gap.
    """
    pairs: dict[int, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        value, _, k = part.partition(":")
        try:
            key, pair = int(value), int(k)
        except ValueError:
            raise OptionError(f"--label_map: expected whole numbers, as in {_EXAMPLE}. Received: {part!r}.") from None
        if key in pairs:
            raise OptionError(f"--label_map: expected each value once. Received: {key} twice.")
        pairs[key] = pair
    pairs.setdefault(0, 0)
    classes = sorted({k for k in pairs.values() if k})
    if not classes or classes != list(range(1, len(classes) + 1)) or classes[-1] > 255:
        raise OptionError(
            f"--label_map: expected the classes 1, 2, ... without a gap, and 0 for background. Received: {text!r}."
        )
    return pairs


def decide_classes(label_map: str, dataset: DatasetFacts | None, values_of: Mapping[str, Iterable[str]]) -> ClassMap:
    """The classes of a data set: as the flag says, else as dataset.json says, else as the values themselves say.

    A single foreground value is class 1, whatever it is (0/255 is common); values 1, 2, ... K are their own classes.

    Args:
        label_map: The flag; empty: not given.
        values_of: File of each mask -> its values.

    Raises:
        OptionError: The flag is wrong, or it is needed: values with a gap could mean anything.
    """
    if label_map.strip():
        return ClassMap(tuple(sorted(parse_label_map(label_map).items())))
    named = [(v, name) for v, name in dataset.label_names if v != dataset.ignore_value] if dataset else []
    if len(named) > 1 and [value for value, _ in named] == list(range(len(named))):
        return ClassMap(tuple((v, v) for v, _ in named), tuple((v, name) for v, name in named if v))
    values = sorted({int(value) for of_file in values_of.values() for value in of_file} - {0})
    if len(values) <= 1 and min(values, default=1) > 0:
        return ClassMap(((0, 0), *((value, 1) for value in values)))
    if values == list(range(1, len(values) + 1)) and len(values) <= 255:
        return ClassMap(tuple((value, value) for value in (0, *values)))
    where = [f"{value} in {next(f for f, found in values_of.items() if str(value) in found)}" for value in values[-3:]]
    raise OptionError(
        f"Expected one foreground value in all masks, or 1, 2, ... without a gap. Received: {values}, such as "
        f"{', '.join(where)}. Say which class each is, as in {_EXAMPLE}."
    )
