"""Writes targets from a finished run and a SAM: `python -m semisam_tf.pseudolabel --workdir=DIR --output=DIR`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from semisam_tf.config import SAM_DEVICE_FLAGS
from semisam_tf.options import OptionError, option, run_command
from semisam_tf.shards import parse_shard

# Without a value they are as the run has them.
_OF_THE_RUN = ("sam_prompts", "sam_points", "sam_point_choice")


@dataclasses.dataclass(frozen=True)
class PseudolabelConfig:
    """Writes the targets that --sam_mode=offline learns from, and NIfTI files of them for a viewer."""

    workdir: str = option("", "Folder of a finished run; its settings hold for all that is no flag here.")
    data_dir: str = option("", "Folder of scans. Empty: the run's.")
    output: str = option("", "Folder to write. Targets that are there are kept, and NIfTI files newer than theirs.")
    cases: str = option("", "File of case names, one a line. Empty: the training cases that the run has no label of.")
    model: str = option("auto", "Weights to use; auto: as the run decided.", choices=("auto", "student", "teacher"))
    sam_dir: str = option("", "Folders of SAM exports, separated by commas. Empty: the predictions alone.")
    sam_prompts: str = option("", "Kinds of prompts: auto, or some of box, point, mask. Empty: the run's.")
    sam_points: int = option(0, "Clicks in each component, where points are prompts; 0: as the run.", unit="points")
    sam_point_choice: str = option(
        "", "Which voxels are clicked, innermost or surest. Empty: as the run.", choices=("", "innermost", "surest")
    )
    sam_axis: tuple[int, ...] = option((2,), "Axes along which a scan is cut into slices.")
    sam_margin_vox: tuple[int, ...] = option((0, 2, 4), "Boxes are drawn this much around a component.", unit="voxels")
    sam_slice_step: int = option(1, "Every so manieth slice is prompted; the others are interpolated.", unit="slices")
    sam_trust: str = option("agreement", "Weight of SAM's answers, as in training.")
    sam_fusion: str = option("mean", "SAM's mask, or the mean of both probabilities.", choices=("sam", "mean"))
    sam_smoothing_vox: float = option(0.7, "Gaussian that smooths the fused probabilities.", unit="voxels")
    sam_cache_dir: str = option("", "Embeddings on disk. Empty: <output>/sam_cache.")
    sam_cache_gib: float = option(
        0.0, "Embeddings on disk take at most this much; scans unused for longest go first. 0: no limit.", unit="GiB"
    )
    sam_providers: str = option("", "ONNX Runtime providers, separated by commas. Empty: the run's.")
    sam_gpu_id: int = option(-1, "CUDA's number of the GPU that SAM runs on; -1: the run's.")
    sam_gpu_mem_gib: float = option(
        0.0, "Most memory that each of a SAM's two graphs may take on the GPU; 0: the run's limit.", unit="GiB"
    )
    nifti: bool = option(
        True,
        "Also write <case>.nii.gz, the mask to correct and use as a label, and <case>_trust.nii.gz, how sure it is "
        "(0..1).",
    )
    nifti_grid: str = option(
        "data",
        "Grid of those files. data: of the scans in the data folder. source: of the scans that prepare read, so "
        "that a corrected mask can be prepared again with them.",
        choices=("data", "source"),
    )
    shard: str = option(
        "", "i/n: every n-th case from the i-th on alone, for n processes that fill one folder. Empty: all cases."
    )


def pseudolabel_command(config: PseudolabelConfig) -> int:
    """Writes what is missing."""
    for name in ("workdir", "output"):
        if not getattr(config, name):
            raise OptionError(f"--{name} is needed (--help lists every flag).")
    if config.sam_fusion == "sam" and not config.sam_dir:
        raise OptionError("--sam_fusion=sam: expected --sam_dir; without a SAM there are the predictions: mean.")
    shard = parse_shard(config.shard)
    from semisam_tf.flavour import require_onnxruntime, require_tensorflow

    require_tensorflow()
    require_onnxruntime()
    from absl import logging

    from semisam_tf.data.splits import read_cases
    from semisam_tf.inference.run_folder import read_run, unlabelled_cases
    from semisam_tf.training.pseudolabels import write_nifti
    from semisam_tf.training.rounds import make_targets, targets_held

    run = read_run(Path(config.workdir))
    same = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name.startswith("sam_") and name not in SAM_DEVICE_FLAGS and not (name in _OF_THE_RUN and not value)
    }
    changes = same | {
        "data_dir": config.data_dir or run["config"].data_dir,
        "sam_mode": "offline",
        "sam_selftest": False,
        "workdir": config.output,  # of the self-test that a trust may ask for: the run's own is another
        "scan_cache_dir": "",  # the run's own may be on another machine; each scan is needed once
        "sam_cache_dir": config.sam_cache_dir or str(Path(config.output) / "sam_cache"),
    }
    settings = dataclasses.replace(run["config"].with_device_of(config), **changes)
    cases = read_cases(config.cases) if config.cases else unlabelled_cases(run, config.data_dir)
    if shard is not None:
        cases = shard.share(cases)
    folder = Path(config.output)
    with targets_held(folder, shard):
        make_targets(settings, Path(config.workdir), folder, cases, labelled=run["labelled"], wanted=config.model)
        for case_id in cases if config.nifti else ():
            write_nifti(settings, folder, case_id, on_source=config.nifti_grid == "source")
    logging.info("Targets of %d scans in %s%s.", len(cases), folder, f", shard {shard}" if shard else "")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(PseudolabelConfig, "semisam_tf.pseudolabel", words, pseudolabel_command)


if __name__ == "__main__":
    sys.exit(main())
