"""What is wrong with cases that can be read: seen only beside each other, or once the classes are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from semisam_tf.preparation.classes import ClassMap
from semisam_tf.preparation.reading import CaseFacts
from semisam_tf.preparation.sources import Problem, Source


def label_problems(
    facts: Mapping[Source, CaseFacts], classes: ClassMap, *, allow_empty_masks: bool, ignore_value: int | None
) -> list[Problem]:
    """Masks with values that have no class, or without any foreground."""
    problems = []
    for source, of_case in facts.items():
        if of_case.label_vox is None:
            continue
        unknown = classes.unknown(of_case.label_vox)
        if unknown:
            hint = "the ignore label of dataset.json is among them; " if ignore_value in unknown else ""
            reason = (
                f"Expected only the values {[value for value, _ in classes.pairs]} in the mask {source.label}. "
                f"Received: {unknown}; {hint}say by --label_map what they are (0: background)."
            )
        elif not allow_empty_masks and not any(classes.class_vox(of_case.label_vox).values()):
            reason = (
                f"Expected some foreground in the mask {source.label}. Received: an empty mask. If nothing is to be "
                "found in this scan, say --allow_empty_masks; to use the scan as unlabelled, take the mask away."
            )
        else:
            continue
        problems.append(Problem(source.case_id, source.images, source.label, reason))
    return problems


def duplicate_problems(facts: Mapping[Source, CaseFacts]) -> list[Problem]:
    """Scans that are there before under another name, with a mask first, then in the order of names.

    The same scan in training and scoring would make every figure too good.
    """
    kept: dict[str, Source] = {}
    problems = []
    for source in sorted(facts, key=lambda source: (source.label is None, source.case_id)):
        other = kept.setdefault(facts[source].content_sha256, source)
        if other is not source:
            reason = (
                f"Expected each scan once. Received: {source.images[0]}, whose voxels are those of {other.images[0]}; "
                "remove one."
            )
            problems.append(Problem(source.case_id, source.images, source.label, reason))
    return problems


def channel_problems(facts: Mapping[Source, CaseFacts]) -> list[Problem]:
    """Scans with another number of channels than most."""
    usual = Counter(of_case.channels for of_case in facts.values()).most_common(1)
    return [
        Problem(
            source.case_id,
            source.images,
            source.label,
            f"Expected {usual[0][0]} channel(s) in {source.images[0]}, as in most scans. Received: {of_case.channels}.",
        )
        for source, of_case in facts.items()
        if of_case.channels != usual[0][0]
    ]
