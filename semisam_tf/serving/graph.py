"""The SavedModel's module: signatures, weights and metadata."""

from __future__ import annotations

import json
from typing import Any

import tensorflow as tf

from semisam_tf.serving import nifti_file
from semisam_tf.serving.checks import checked
from semisam_tf.serving.nifti_orientation import axis_order
from semisam_tf.serving.pipeline import Pipeline, Segmentation


class ServingModule(tf.Module):
    """What TensorFlow Serving loads.

    Args:
        pipeline: The steps.
        metadata: Facts about the model, JSON values by name.
        orientation: Axis code of the scans that it was trained on, to which `nifti` turns a file by its header; None
            leaves files as they are. `serving_default` knows of no header and wants its volume in that order.
    """

    def __init__(self, pipeline: Pipeline, metadata: dict[str, Any], orientation: str | None = None) -> None:
        super().__init__(name="semisam")
        # The variables alone are saved: the Keras model would take its own, unused functions along.
        models = [pipeline.model] + ([] if pipeline.coarse_model is None else [pipeline.coarse_model])
        self.weights = [variable.value for model in models for variable in model.weights]
        # `signatures` itself is a name that tf.saved_model keeps for itself.
        self.functions = signature_functions(pipeline, metadata, orientation)


def as_written(spacing_mm: tf.Tensor) -> tf.Tensor:
    """float32 -> float64: the number of at most six decimals that it stands for, where there is one.

    Half voxels must round as in Python, where 1.7 is nearer to 1.7 than float32 has it. By way of text, since a graph's
    optimiser turns a division by 1e6 into a product, which is not the same number.
    """
    decimal = tf.strings.to_number(tf.strings.as_string(spacing_mm, precision=6), tf.float64)
    return tf.where(tf.cast(decimal, tf.float32) == spacing_mm, decimal, tf.cast(spacing_mm, tf.float64))


def _located(found: Segmentation) -> dict[str, tf.Tensor]:
    """One more output of coarse-to-fine runs: a whole scan instead of a region is not to go unsaid."""
    return {} if found.located is None else {"located": found.located}


def signature_functions(
    pipeline: Pipeline, metadata: dict[str, Any], orientation: str | None
) -> dict[str, tf.types.experimental.GenericFunction]:
    """The functions behind the signatures, by name."""

    def segment(volume: tf.Tensor, spacing_mm: tf.Tensor) -> dict[str, tf.Tensor]:
        """volume: float32 [X, Y, Z, C], or [X, Y, Z] where C is 1; spacing_mm: float32 [3]."""
        rank = tf.rank(volume)
        volume = checked(volume, (rank >= 3) & (rank <= 4), "a volume [X, Y, Z] or [X, Y, Z, C]", tf.shape(volume))
        with_channels = tf.concat([tf.shape(volume), [1]], axis=0)[:4]
        found = pipeline(tf.reshape(volume, with_channels), as_written(spacing_mm))
        return {
            "mask": found.mask, "foreground_probability": found.foreground, "confidence": found.confidence,
            **_located(found),
        }  # fmt: skip

    def nifti(nifti_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """nifti_bytes: string scalar, a .nii or .nii.gz."""
        header, volume = nifti_file.read(nifti_bytes, pipeline.channels, pipeline.limits)
        if orientation is None:
            found = pipeline(volume, header.spacing_mm)
            mask = found.mask
        else:
            order = axis_order(header, orientation)
            found = pipeline(order.apply(volume), tf.gather(header.spacing_mm, order.permutation))
            mask = order.undo(found.mask)
        return {
            "mask_bytes": nifti_file.write_mask(header, mask), "confidence": found.confidence, **_located(found)
        }  # fmt: skip

    names = tf.constant(["", *metadata])
    values = tf.constant([json.dumps(metadata), *map(json.dumps, metadata.values())])

    def describe(field: tf.Tensor) -> dict[str, tf.Tensor]:
        """field: string scalar, a name; empty for all. TensorFlow Serving refuses signatures without an input."""
        is_it = tf.equal(names, field)
        place = checked(
            tf.argmax(is_it), tf.reduce_any(is_it), f"a field of {', '.join(metadata)}, or nothing for all", field
        )
        return {"json": values[place]}

    specs = {
        "serving_default": (segment, {"volume": tf.TensorSpec(None), "spacing_mm": tf.TensorSpec([3], tf.float32)}),
        "nifti": (nifti, {"nifti_bytes": tf.TensorSpec([], tf.string)}),
        "metadata": (describe, {"field": tf.TensorSpec([], tf.string)}),
    }
    functions = {}
    for name, (function, inputs) in specs.items():
        named = [tf.TensorSpec(spec.shape, spec.dtype, name=key) for key, spec in inputs.items()]
        functions[name] = tf.function(function, input_signature=named, autograph=False)
    return functions
