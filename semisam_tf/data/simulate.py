"""The quick-start cohort: subjects simulated from one real labelled chest CT.

    python -m semisam_tf.data.simulate --output=DIR [--classes=lungs_and_spine]

The CT and its segmentation ship with slicerio (MIT): 128x128x34 voxels of 3.05x3.05x10 mm. Each subject is that scan
under its own affine and smooth deformation, on its own grid, with its own monotone intensity curve, field and noise.
The organ is both lungs, or what `COHORTS` says. It is there to prove that the tool works within minutes; it is no
clinical data set.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from semisam_tf.atomic import replacing, write_json
from semisam_tf.options import OptionError, option, run_command

if TYPE_CHECKING:
    from semisam_tf.data.volumes import Volume

COHORT_FILE = "cohort.json"
VERSION = 1
# Name -> for each class, from 1 on, its values in the source's segmentation: 2 cervical, 3 thoracic, 4 lumbar spine,
# 5 right lung, 6 left lung.
COHORTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "lungs": ((5, 6),),
    "lungs_and_spine": ((6,), (5,), (2, 3, 4)),
    "lumbar_spine": ((4,),),
}
_AIR_HU, _BONE_HU = -1024.0, 1200.0


def make_quickstart(
    output_dir: str | os.PathLike[str], subjects: int = 12, seed: int = 0, classes: str = "lungs"
) -> Path:
    """Writes `<output_dir>/subject_NN/{image,label}.nii.gz`, `train.list` (first two thirds) and `test.list` (rest).

    A finished cohort of the same subjects, seed, classes and version is left alone; otherwise it is (re)written. The
    label files of subjects that a run uses as unlabelled are there as well, so that SAM's targets can be judged
    afterwards; `load_volume(..., with_label=False)` does not open them.

    Args:
        output_dir: Folder, made if absent.
        subjects: At least 3.
        seed: Non-negative; the same seed gives the same files.
        classes: Name in `COHORTS`; the scans are the same for each.

    Returns:
        `output_dir` as a Path.

    Raises:
        FileNotFoundError: slicerio is not installed.
        ValueError: Too few subjects, unknown classes, or `output_dir` holds other files.
    """
    if classes not in COHORTS:
        raise ValueError(f"Expected classes to be one of {', '.join(COHORTS)}. Received: classes={classes!r}.")
    if subjects < 3 or seed < 0:
        raise ValueError(f"Expected subjects >= 3 and seed >= 0. Received: subjects={subjects}, seed={seed}.")
    from semisam_tf.data.volumes import save_volume_pair  # SimpleITK is slow to import; --help is not

    output = Path(output_dir)
    record = {
        "version": VERSION, "subjects": subjects, "seed": seed, "source": "slicerio CTChest4.nrrd", "classes": classes
    }  # fmt: skip
    if _is_finished(output, record):
        logging.info("Quick-start cohort is already in %s.", output)
        return output
    _refuse_foreign(output)
    # First: were this run killed, the record must not vouch for what is not there, and the folder stays known as ours.
    write_json(output / COHORT_FILE, {**record, "finished": False})
    names = [f"subject_{number:02d}" for number in range(1, subjects + 1)]
    source = _Source(COHORTS[classes])
    for number, name in enumerate(names):
        volume = source.subject(name, np.random.default_rng([seed, number]))
        save_volume_pair(output / name / "image.nii.gz", output / name / "label.nii.gz", volume)
        logging.info("Simulated %s (%d of %d): %s voxels.", name, number + 1, subjects, volume.size)
    n_train = subjects - max(1, subjects // 3)
    for list_name, cases in (("train.list", names[:n_train]), ("test.list", names[n_train:])):
        with replacing(output / list_name) as temporary:
            temporary.write_text("\n".join(cases) + "\n", encoding="utf-8")
    # Last: its presence says that everything before it is there.
    write_json(output / COHORT_FILE, {**record, "finished": True, "cases": names})
    return output


def _refuse_foreign(output: Path) -> None:
    """A folder with anything in it but a cohort of ours is somebody's data: its lists are not to be overwritten."""
    if output.is_dir() and any(output.iterdir()) and not (output / COHORT_FILE).is_file():
        raise ValueError(
            f"Expected an empty folder, or a quick-start cohort, for the simulated subjects. Received: {output}, which "
            "holds other files; choose another folder (--data_dir), or train on it with --noquickstart_cohort."
        )


def _is_finished(output: Path, record: dict[str, object]) -> bool:
    try:
        # Cohorts of older versions name no classes: they had but the lungs.
        found = {"classes": "lungs"} | json.loads((output / COHORT_FILE).read_text(encoding="utf-8"))
        if not found["finished"]:
            return False
        cases = [output / name / file for name in found["cases"] for file in ("image.nii.gz", "label.nii.gz")]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    lists = [output / "train.list", output / "test.list"]
    return all(found.get(key) == value for key, value in record.items()) and all(p.is_file() for p in cases + lists)


class _Source:
    """The real scan, and how a subject is made from it.

    Args:
        classes: Of each class the values of the segmentation.
    """

    def __init__(self, classes: tuple[tuple[int, ...], ...]) -> None:
        from semisam_tf.data.label_access import outside_runs
        from semisam_tf.data.volumes import CaseFiles, load_volume

        spec = importlib.util.find_spec("slicerio")
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError("Expected the package slicerio, which has the source CT: pip install slicerio.")
        folder = Path(next(iter(spec.submodule_search_locations))) / "data"
        files = CaseFiles("source", folder / "CTChest4.nrrd", folder / "Segmentation.seg.nrrd", "flat")
        scan = load_volume(files, with_label=outside_runs("the source of simulated scans"))
        if scan.label is None:
            raise RuntimeError(f"Expected a label in {files.label}.")
        self.spacing_mm = np.asarray(scan.spacing_mm)
        self.directions = scan.affine[:3, :3] / self.spacing_mm
        # Outside the scanner's circle the file says -3024: no such tissue, so air.
        self.hu = np.clip(scan.image[..., 0], _AIR_HU, _BONE_HU)
        self.organs = [np.isin(scan.label, values).astype(np.float32) for values in classes]

    def subject(self, case_id: str, rng: np.random.Generator) -> Volume:
        """A labelled Volume with its own anatomy, grid and intensities."""
        from scipy import ndimage

        from semisam_tf.data.volumes import Volume

        size = rng.integers((100, 100, 30), (117, 117, 37))
        extent_mm = np.asarray(self.hu.shape) * self.spacing_mm
        spacing_mm = extent_mm / size * rng.uniform(0.96, 1.04, 3)
        where = self._source_voxels(rng, size, spacing_mm)
        hu = ndimage.map_coordinates(self.hu, where, order=1, mode="constant", cval=_AIR_HU, prefilter=False)
        shares = [
            ndimage.map_coordinates(organ, where, order=1, mode="constant", cval=0.0, prefilter=False)
            for organ in self.organs
        ]
        # The largest share wins, the background's included; of equal ones the first.
        label = np.argmax([np.float32(1) - sum(shares), *shares], axis=0).astype(np.uint8)
        affine = np.eye(4)
        affine[:3, :3] = self.directions * spacing_mm
        affine[:3, 3] = -affine[:3, :3] @ ((size - 1) / 2)
        return Volume(
            case_id=case_id,
            image=_intensities(rng, hu)[..., None],
            label=label,
            spacing_mm=(float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])),
            affine=affine,
        )

    def _source_voxels(self, rng: np.random.Generator, size: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
        """Where each voxel of the subject lies in the source: float32 [3, X, Y, Z], source voxels."""
        from semisam_tf.data.augment import bspline_matrix, rotation_matrix

        turn = rotation_matrix(*np.deg2rad(rng.uniform(-1, 1, 3) * (5, 5, 12)))
        # About the centres of both grids, in mm from there. One factor for the body's size, one for its build.
        matrix = turn @ np.diag(np.exp(rng.uniform(-0.08, 0.08) + rng.uniform(-0.12, 0.12, 3)))
        shift_mm = rng.uniform(-1, 1, 3) * (12, 12, 15)
        grid = (7, 7, 6)
        field_mm = rng.standard_normal((3, *grid)) * np.reshape((22, 22, 26), (3, 1, 1, 1))
        for axis, n in enumerate(size):
            spline = bspline_matrix(int(n), grid[axis])
            field_mm = np.moveaxis(np.tensordot(spline, field_mm, axes=(1, axis + 1)), 0, axis + 1)
        steps = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing_mm, strict=True)]
        here_mm = np.stack(np.meshgrid(*steps, indexing="ij"))
        there_mm = np.tensordot(matrix, here_mm, axes=1) + shift_mm.reshape(3, 1, 1, 1) + field_mm
        centre = (np.asarray(self.hu.shape) - 1) / 2
        voxels = there_mm / self.spacing_mm.reshape(3, 1, 1, 1) + centre.reshape(3, 1, 1, 1)
        return voxels.astype(np.float32)


def _intensities(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    """Turns Hounsfield units into a subject's own arbitrary units.

    A threshold must not solve the task: the air around the body gets values like the lungs' (their order may even
    swap), tissue moves up and down against both, a smooth field multiplies everything, and there is noise.
    """
    from semisam_tf.data.intensity import multiply_field

    lung = rng.uniform(0.15, 0.35)
    tissue = lung + rng.uniform(0.25, 0.5)
    knots = [_AIR_HU, -970.0, -860.0, -500.0, -60.0, 60.0, 300.0, _BONE_HU]
    air = lung + rng.uniform(-0.06, 0.06)
    fat = tissue - rng.uniform(0.02, 0.12)
    values = [air, air, lung, 0.5 * (lung + fat), fat, tissue, tissue + rng.uniform(0.1, 0.3), 1.3]
    image = np.interp(hu, knots, values).astype(np.float32)
    image = multiply_field(image - np.float32(image.min()), rng.uniform(-0.45, 0.45, (4, 4, 4))) + np.float32(lung)
    image *= np.exp(rng.normal(0, 0.03, (1, 1, image.shape[2]))).astype(np.float32)
    image += np.float32(rng.uniform(0.02, 0.06)) * rng.standard_normal(image.shape, np.float32)
    return (image * np.float32(rng.uniform(300, 1500))).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SimulateConfig:
    """Simulates the quick-start cohort from one real labelled chest CT."""

    output: str = option("", "Folder to write the cohort to.")
    subjects: int = option(12, "Number of subjects; a third of them goes to test.list.", unit="subjects")
    seed: int = option(0, "Seed of everything random.")
    classes: str = option("lungs", "Organs that the subjects are labelled with.", choices=tuple(COHORTS))


def simulate(config: SimulateConfig) -> int:
    """The command."""
    if not config.output:
        raise OptionError("--output is needed: the folder to write the cohort to.")
    output = make_quickstart(config.output, config.subjects, config.seed, config.classes)
    sys.stdout.write(f"Quick-start cohort: {output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(SimulateConfig, "semisam_tf.data.simulate", sys.argv[1:], simulate))
