"""The SAM export: whether its files are the ones that were verified, and what its embeddings will take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from semisam_tf.config import Config
from semisam_tf.findings import FAIL, OK, WARN, Finding
from semisam_tf.health.machine import GIB, check_folder, gib
from semisam_tf.health.scans import ScanFacts
from semisam_tf.sam.cache import disk_bytes_of
from semisam_tf.sam.manifest import Manifest, load_manifest


def check_exports(config: Config) -> tuple[list[Finding], list[Manifest]]:
    """`check_export` of every folder of `sam_dir`; manifests of those that are sound."""
    checked = [check_export(config, folder) for folder in config.sam_folders()]
    return [f for findings, _ in checked for f in findings], [m for _, m in checked if m is not None]


def check_export(config: Config, folder: str) -> tuple[list[Finding], Manifest | None]:
    """Hashes every file of an export, and asks whether it takes the prompts that the run would make."""
    from semisam_tf.sam.prompts import prompt_kinds  # SciPy, which may be what is broken

    try:
        manifest = load_manifest(folder)
        kinds = prompt_kinds(manifest, config.sam_prompts)
    except (OSError, ValueError) as error:
        command = "python -m export.sam"
        fix = "" if command in str(error) else f"{command} --family=FAMILY --output={folder} --force"
        return [Finding(FAIL, "sam", str(error), fix)], None
    found = (
        f"{manifest.family} in {folder}, {manifest.dims}D, prompted by {' and '.join(kinds)}; "
        f"{len(manifest.sha256)} files have the sha256 of the manifest"
    )
    findings = [Finding(OK, "sam", found)]
    if manifest.source.get("name", "").startswith("random"):
        findings.append(
            Finding(WARN, "sam", "its weights are random: it teaches nothing", "export with --checkpoint=FILE")
        )
    return findings, manifest


def views_of_scan(config: Config, manifest: Manifest, scan: ScanFacts) -> int:
    """Slices or windows of a scan that may be encoded."""
    if manifest.dims == 2:
        return sum(math.ceil(scan.grid_vox[axis] / config.sam_slice_step) for axis in config.sam_axis)
    from semisam_tf.sam.window import WindowFrame

    return len(WindowFrame.of(scan.grid_vox, scan.grid_spacing_mm, manifest).starts)


def check_cache(config: Config, manifests: Sequence[Manifest], unlabelled: Sequence[ScanFacts]) -> Finding:
    """Whether the embeddings of the unlabelled scans fit on the disk; slices without organ take nothing.

    Those beyond `sam_cache_gib` are never there at once: they cost no room, but are encoded anew when they are due.
    """
    folder = config.sam_cache_dir or str(Path(config.workdir or ".") / "sam_cache")
    counts = [sum(views_of_scan(config, manifest, scan) for scan in unlabelled) for manifest in manifests]
    needed = sum(2 * math.prod(m.embedding_shape) * views for m, views in zip(manifests, counts, strict=True))
    there = disk_bytes_of(Path(folder))
    kind = " or ".join(sorted({"slices" if manifest.dims == 2 else "windows" for manifest in manifests}))
    what = f"at most {gib(needed)} for {sum(counts)} {kind} of {len(unlabelled)} scans, {gib(there)} is there"
    limit = int(config.sam_cache_gib * GIB)
    if limit and needed > limit:
        what += f"; --sam_cache_gib keeps {gib(limit)} of it, the rest is encoded again and again"
        needed = limit
    return check_folder("sam cache", folder, max(0, needed - there), what, "--sam_cache_dir")
