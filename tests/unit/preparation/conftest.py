"""Scans on disk, made from an array and an affine."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from semisam_tf.data.itk import write_image


def _write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0]) if affine is None else affine
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.nan_to_num(array), np.linalg.norm(affine[:3, :3], axis=0), affine)
    if not np.isfinite(array).all():
        broken = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        broken.CopyInformation(sitk.ReadImage(str(path)))
        sitk.WriteImage(broken, str(path))
    return path


@pytest.fixture
def write_scan() -> Callable[..., Path]:
    """`write_scan(path, array, affine)`; the affine maps voxels to RAS+ millimetres."""
    return _write
