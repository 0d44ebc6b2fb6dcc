"""From the settings to the SAMs that a run asks, and how."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from absl import logging

from semisam_tf.config import Config
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.device import require_memory_growth
from semisam_tf.inference.run_folder import read_run, rounds_of
from semisam_tf.sam.branch import SamBranch
from semisam_tf.sam.cache import EmbeddingCache
from semisam_tf.sam.ensemble import SamEnsemble
from semisam_tf.sam.manifest import load_manifest
from semisam_tf.sam.prompts import prompt_kinds
from semisam_tf.sam.runtime import CUDA
from semisam_tf.sam.session import SamSession
from semisam_tf.sam.trust import OrganPrior, parse
from semisam_tf.training.pseudolabels import making_of
from semisam_tf.training.selftest import selftest_of

# Settings that mean something for a SAM of slices only.
_SLICE_FLAGS = ("sam_axis", "sam_margin_vox", "sam_slice_step", "sam_max_slices")

_ASKING = (
    "sam_prompts", "sam_points", "sam_point_choice", "sam_trust", "sam_axis", "sam_channel", "sam_margin_vox",
    "sam_min_area_vox", "sam_slice_step",
)  # fmt: skip


def sam_sessions(config: Config) -> list[SamSession]:
    """Opens each SAM, so that a wrong folder, provider, trust or kind of prompt is said before any scan is read.

    All graphs are run once: SAM's turn may come hours later.

    Raises:
        RuntimeError: From `require_memory_growth`, where CUDA is asked for; and what `SamSession` raises.
    """
    if config.sam_mode == "off":
        return []
    trusts = parse(config.sam_trust)
    providers = tuple(part.strip() for part in config.sam_providers.split(",") if part.strip())
    if CUDA in providers:
        require_memory_growth()
    limit_bytes = int(config.sam_gpu_mem_gib * 2**30) if config.sam_gpu_mem_gib else None
    sessions = [
        SamSession(
            folder,
            providers=providers,
            allow_cpu=config.sam_allow_cpu,
            gpu_mem_limit_bytes=limit_bytes,
            gpu_id=config.sam_gpu_id,
        )
        for folder in config.sam_folders()
    ]
    if sessions and "agreement" in trusts and sum(_answers_of(config, session) for session in sessions) < 2:
        logging.warning(
            "--sam_trust=agreement has a single answer of SAM and nothing to compare it with: that is trusted wholly. "
            "Name more than one --sam_margin_vox or --sam_axis (SAMs of slices) or --sam_dir, or another trust."
        )
    for session in sessions:
        session.try_out(prompt_kinds(session.manifest, config.sam_prompts))
    return sessions


def _answers_of(config: Config, session: SamSession) -> int:
    """How many answers of a SAM are fused."""
    return 1 if session.manifest.dims == 3 else len(config.sam_axis) * len(config.sam_margin_vox)


def asking_of(config: Config) -> dict[str, Any]:
    """What decides SAM's answer to a prediction, as JSON values: the models' files, and the settings by flag.

    Raises:
        FileNotFoundError, ValueError: A model's folder is not there or not as it was exported.
    """
    if not config.sam_folders():
        return {"SAM": []}
    settings = {f"--{name}": getattr(config, name) for name in _ASKING}
    models = [load_manifest(folder).sha256 for folder in config.sam_folders()]
    return json.loads(json.dumps({"SAM": models, **settings}))


def sam_of_run(workdir: Path, config: Config) -> bool:
    """Whether a finished run was taught by the SAM that its settings name, and that is there still, the same files."""
    if config.sam_mode == "off" or not config.sam_folders() or (config.sam_mode == "offline" and config.rounds == 1):
        return False  # of targets that somebody made beforehand the settings know no SAM
    gone = [folder for folder in config.sam_folders() if not Path(folder).is_dir()]
    if gone:
        logging.info("%s is not there: SAM is left out of the pictures.", ", ".join(gone))
        return False
    there = [dict(load_manifest(folder).sha256) for folder in config.sam_folders()]
    if config.sam_mode == "offline":
        making = making_of(rounds_of(workdir)[-2] / "targets")
        used = None if making is None else making.get("SAM")
    else:
        used = read_run(workdir).get("sam_sha256")
    if used != there:
        logging.info("%s is another export than the run's: SAM is left out of the pictures.", config.sam_dir)
    return used == there


def looks_at_labels(config: Config) -> bool:
    """Whether how SAM is asked and trusted depends on the labelled scans."""
    return config.sam_selftest or bool({"prior", "selftest"} & set(parse(config.sam_trust)))


def sam_ensemble(config: Config, labelled: list[Volume], sessions: list[SamSession]) -> SamEnsemble:
    """A branch for each model, axis and margin that the settings name."""
    cache, trusts = None, parse(config.sam_trust)
    tests_itself = config.sam_selftest or "selftest" in trusts
    # Crops leave it alone; the self-test asks about the same slices again and again.
    if config.sam_mode != "online" or tests_itself:
        folder = config.sam_cache_dir or Path(config.workdir) / "sam_cache"
        cache = EmbeddingCache(folder, limit_bytes=int(config.sam_cache_gib * 2**30))
    common: dict[str, Any] = {
        "prompts": config.sam_prompts,
        "points": config.sam_points,
        "surest_points": config.sam_point_choice == "surest",
        "min_area_vox": config.sam_min_area_vox,
        "trust": config.sam_trust,
        "channel": config.sam_channel,
        "cache": cache,
    }
    max_slices = config.sam_max_slices if config.sam_mode == "online" else 0
    branches = []
    for session in sessions:
        if session.manifest.dims == 3:
            _warn_of_vain_flags(config, session)
            branches.append(SamBranch(session, **common))
            continue
        for axis, margin_vox in itertools.product(config.sam_axis, config.sam_margin_vox):
            slices: dict[str, Any] = {"axis": axis, "margin_vox": margin_vox, "slice_step": config.sam_slice_step}
            branches.append(SamBranch(session, **common, **slices, max_slices=max_slices))
    prior = None
    if "prior" in trusts:
        labels = [volume.label for volume in labelled if volume.label is not None]
        prior = OrganPrior.of(labels, [volume.spacing_mm for volume in labelled], config.n_classes)
    ensemble = SamEnsemble(branches, trusts, prior)
    if tests_itself:
        found = selftest_of(config, ensemble, labelled, asking_of(config))
        if "selftest" in trusts:
            ensemble.scan_trust = found.trust
    return ensemble


def _warn_of_vain_flags(config: Config, session: SamSession) -> None:
    defaults = Config()
    set_in_vain = [name for name in _SLICE_FLAGS if getattr(config, name) != getattr(defaults, name)]
    if set_in_vain:
        logging.warning(
            "%s sees volumes, not slices; without effect: %s.",
            session.manifest.family, ", ".join(f"--{name}" for name in set_in_vain),
        )  # fmt: skip
