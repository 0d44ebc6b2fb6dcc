"""What an exported SAM says of itself, and the check that its files are the ones it speaks of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semisam_tf.sam.manifest_rules import check_rules

FORMAT = 2
ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"
MANIFEST_FILE = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How intensities become what the encoder was trained on: clip, then `method`, then mean and std.

    Attributes:
        clip_percentiles: Percentiles in [0, 100] of the whole scan that intensities are clipped to.
        unit: What "min_max" stretches to [0, 1] after resizing: "slice" (each picture on its own) or "scan".
        method: "min_max", or "z_score_above_minimum": less the mean and divided by the standard deviation (of the
            sample, as torch's) of those voxels of the padded window that lie above its minimum.
        mean: Subtracted from each channel afterwards.
        std: Each channel is divided by it in the end.
    """

    clip_percentiles: tuple[float, float]
    unit: str
    method: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or output of a graph. `shape` holds a string where the size is free (batch, points)."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that is needed to drive an exported SAM.

    Graphs may name and shape their tensors as they like; what they mean is their role. Roles, in the driver's terms:

    - encoder: `images` [n, channels, *input_size] -> `embeddings` [n, *embedding_shape];
    - decoder: `embeddings` [n or 1, *embedding_shape]; `points` [n, p, dims] in pixels of the encoder's picture;
      `point_labels` [n, p], codes of `point_codes`; `masks` [n, *mask_size], logits over the whole picture;
      `has_masks` [n] in {0, 1}, where 0 overrules `masks`; `boxes` [n, 4] as (x first, y first, x last, y last), both
      ends within, for decoders without points; `original_size` [dims], the picture's size (Meta's graphs ask for it)
      -> `logits` [n, *logits_size] and `predicted_iou` [n], each perhaps with an axis of K masks after n.

    Decoders with points take a box as two more of them, and one padding point (0, 0) where there is no box.

    Attributes:
        family: Name that `python -m export.sam --family` takes, or another where the graphs were adopted.
        dims: 2 for a model of slices, 3 for a model of volumes.
        input_size: Size of the encoder's picture (`dims` numbers; rows and columns in 2D).
        channels: Channels of the encoder's picture; grey intensities are repeated into all of them.
        image_layout: Of the images: "channels_first" [n, c, *size], "channels_last" [n, *size, c] or
            "channels_last_unbatched" [*size, c].
        scaling: Intensities.
        resize: Rule of the frame, antialiased linear: "longer_side_linear" (2D: the longer side becomes the input's),
            "stretch_linear" (2D: each side does) or "spacing_linear" (3D: to `input_spacing_mm`, then cut or padded to
            the input size).
        padding: Rule of the frame: "end_zeros" (2D: zeros below and to the right, after mean and std), "in_graph" (2D:
            the resized picture as it is; the graph pads) or "centre_minimum" (3D: the scan in the middle, its minimum
            around it, before scaling).
        input_spacing_mm: Voxel spacing of a 3D model's input; None in 2D.
        coordinate_axes: For each coordinate of a point the axis of the picture it runs along: (1, 0) is x, y.
        point_codes: Code of each kind of point in `point_labels`: "foreground", "background", "padding", and where the
            model knows boxes "box_first" and "box_last". Empty for a decoder without points.
        mask_size: Size of a mask prompt; empty for a decoder without them.
        mask_index: Which of a decoder's K masks is meant for prompts that leave no doubt.
        prompts: Which of "box", "point", "mask" the model really supports.
        prompt_notes: For each kind that is not supported, why.
        mask_threshold_logits: A voxel belongs to the mask where its logit is above this.
        embedding_shape: Shape of one embedding, without the batch.
        logits_size: Size of the decoder's mask, which covers the whole picture (`dims` numbers).
        encoder_inputs, encoder_outputs, decoder_inputs, decoder_outputs: Role -> tensor.
        opset: ONNX operator set.
        exporter: What wrote the graphs.
        source: Where the weights are from: "name" and "sha256".
        sha256: File name -> sha256, of every file of the folder but the manifest: graphs and external data.
        max_errors: Largest error against torch, graph -> {"absolute", "relative"}; empty if adopted.
        comparisons: The comparisons with torch, one by one; empty if adopted.
        precision: "encoder": "fp32", "fp16" or "int8"; "mask_dice": worst Dice of masks against fp32's, or None.
        scan_check: What comparing masks on a real scan found: "scan", "slices", "worst_mask_dice" (None: all were empty
            or full), "voxels_differing"; None if it was not done.
        licence: Licence of the weights.
        created_with: Package -> version.
    """

    family: str
    dims: int
    input_size: tuple[int, ...]
    channels: int
    image_layout: str
    scaling: Scaling
    resize: str
    padding: str
    input_spacing_mm: tuple[float, ...] | None
    coordinate_axes: tuple[int, ...]
    point_codes: Mapping[str, int]
    mask_size: tuple[int, ...]
    mask_index: int
    prompts: Mapping[str, bool]
    prompt_notes: Mapping[str, str]
    mask_threshold_logits: float
    embedding_shape: tuple[int, ...]
    logits_size: tuple[int, ...]
    encoder_inputs: Mapping[str, Tensor]
    encoder_outputs: Mapping[str, Tensor]
    decoder_inputs: Mapping[str, Tensor]
    decoder_outputs: Mapping[str, Tensor]
    opset: int
    exporter: str
    source: Mapping[str, str]
    sha256: Mapping[str, str]
    max_errors: Mapping[str, Mapping[str, float]]
    comparisons: tuple[Mapping[str, Any], ...]
    precision: Mapping[str, Any]
    scan_check: Mapping[str, Any] | None
    licence: str
    created_with: Mapping[str, str]
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is the inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Builds a manifest from JSON values.

        Raises:
            ValueError: A field is missing or unknown, the format is another one, a rule is not known here, or fields
                contradict each other.
        """
        _check_fields(cls, values)
        fields = dict(values)
        scaling = dict(fields["scaling"])
        low, high = scaling["clip_percentiles"]
        scaling.update(clip_percentiles=(low, high), mean=tuple(scaling["mean"]), std=tuple(scaling["std"]))
        fields["scaling"] = Scaling(**scaling)
        for name in ("input_size", "embedding_shape", "logits_size", "mask_size", "coordinate_axes"):
            fields[name] = tuple(int(n) for n in fields[name])
        if fields["input_spacing_mm"] is not None:
            fields["input_spacing_mm"] = tuple(float(s) for s in fields["input_spacing_mm"])
        fields["comparisons"] = tuple(dict(comparison) for comparison in fields["comparisons"])
        for name in ("encoder_inputs", "encoder_outputs", "decoder_inputs", "decoder_outputs"):
            fields[name] = {role: Tensor(t["name"], tuple(t["shape"]), t["dtype"]) for role, t in fields[name].items()}
        manifest = cls(**fields)
        check_rules(manifest, (ENCODER_FILE, DECODER_FILE))
        return manifest

    def digest(self) -> str:
        """sha256 over what decides an embedding: the encoder's bytes and how intensities become its picture."""
        files = {name: sha256 for name, sha256 in self.sha256.items() if not name.startswith(DECODER_FILE)}
        decisive = [files, self.input_size, self.channels, self.image_layout, dataclasses.asdict(self.scaling)]
        decisive += [self.resize, self.padding, self.input_spacing_mm, self.embedding_shape]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def load_manifest(folder: str | Path) -> Manifest:
    """Reads `manifest.json` and verifies every file that it lists.

    Args:
        folder: An export made by `python -m export.sam`.

    Raises:
        FileNotFoundError: The folder or one of its files is not there; the message names the export command.
        ValueError: The manifest cannot be read, or a file is not the one that was verified at export.
    """
    folder = Path(folder)
    _check_present(folder, (MANIFEST_FILE, ENCODER_FILE, DECODER_FILE))
    path = folder / MANIFEST_FILE
    try:
        manifest = Manifest.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"Expected a SAM manifest; export again with --force. Received: {path}: {error!r}.") from error
    # External data too (weights beyond 2 GiB lie beside their graph).
    _check_present(folder, tuple(manifest.sha256))
    for name, expected in manifest.sha256.items():
        actual = file_sha256(folder / name)
        if actual != expected:
            raise ValueError(
                f"Expected the file that was verified at export, sha256 {expected}; it was changed or swapped: "
                f"export again with --force. Received: {folder / name} with sha256 {actual}."
            )
    return manifest


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_present(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"Expected an exported SAM with {name}. Make it with: "
                f"python -m export.sam --family=lite_medsam --output={folder}. Received: folder={str(folder)!r}."
            )


def _check_fields(cls: type[Manifest], values: Mapping[str, Any]) -> None:
    if values.get("format") != FORMAT:
        raise ValueError(
            f"Expected a manifest of format {FORMAT}; export again with --force. Received: {values.get('format')!r}."
        )
    known = {field.name for field in dataclasses.fields(cls)}
    missing, unknown = sorted(known - set(values)), sorted(set(values) - known)
    if missing or unknown:
        raise ValueError(
            "Expected the fields of a SAM manifest; export again with --force. "
            f"Received: missing={missing}, unknown={unknown}."
        )
