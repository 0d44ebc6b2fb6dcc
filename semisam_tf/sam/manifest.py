"""What an exported SAM says of itself, and the check that its files are the ones it speaks of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1
ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"
MANIFEST_FILE = "manifest.json"
PROMPT_KINDS = ("box", "point", "mask")


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How intensities become what the encoder was trained on: clip (scan), min-max (slice), then mean and std.

    Attributes:
        clip_percentiles: Percentiles in [0, 100] of the whole scan that intensities are clipped to.
        unit: What is stretched to [0, 1] after resizing and before padding: "slice" (each slice on its own) or "scan".
        mean: Subtracted from each channel of the [0, 1] picture.
        std: Each channel is divided by it afterwards.
    """

    clip_percentiles: tuple[float, float]
    unit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or output of a graph. `shape` holds a string where the size is free (the batch)."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that is needed to drive an exported SAM.

    Attributes:
        family: Name that `python -m export.sam --family` takes.
        dims: 2 for a model of slices, 3 for a model of volumes.
        input_size: Rows and columns of the encoder's picture (`dims` numbers).
        channels: Channels of the encoder's picture; a grey slice is repeated into all of them.
        scaling: Intensities.
        resize: Rule of the frame: "longer_side_linear" (the longer side becomes the input size, antialiased linear).
        padding: Rule of the frame: "end_zeros" (zeros below and to the right).
        prompts: Which of "box", "point", "mask" the model really supports.
        prompt_notes: For each kind that is not supported, why.
        mask_threshold_logits: A voxel belongs to the mask where its logit is above this.
        embedding_shape: Shape of one embedding, without the batch.
        logits_size: Rows and columns of the decoder's mask.
        encoder_inputs, encoder_outputs, decoder_inputs, decoder_outputs: Role -> tensor. Roles of prompts, N first:
            "boxes" [N, 4]; "points" [N, P, 2] as (x, y) with "point_labels" [N, P], 1 inside and 0 outside;
            "masks" [N, rows, columns], logits over the whole picture.
        opset: ONNX operator set.
        exporter: What wrote the graphs.
        source: Checkpoint the weights are from: "name" and "sha256".
        sha256: File name -> sha256 of the graph.
        max_errors: Largest error against torch, graph -> {"absolute", "relative"}.
        licence: Licence of the weights.
        created_with: Package -> version.
    """

    family: str
    dims: int
    input_size: tuple[int, ...]
    channels: int
    scaling: Scaling
    resize: str
    padding: str
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
            ValueError: A field is missing or unknown, the format is another one, or a rule is not known here.
        """
        _check_fields(cls, values)
        fields = dict(values)
        scaling = fields["scaling"]
        low, high = scaling["clip_percentiles"]
        fields["scaling"] = Scaling((low, high), scaling["unit"], tuple(scaling["mean"]), tuple(scaling["std"]))
        for name in ("input_size", "embedding_shape", "logits_size"):
            fields[name] = tuple(int(n) for n in fields[name])
        for name in ("encoder_inputs", "encoder_outputs", "decoder_inputs", "decoder_outputs"):
            fields[name] = {role: Tensor(t["name"], tuple(t["shape"]), t["dtype"]) for role, t in fields[name].items()}
        manifest = cls(**fields)
        _check_rules(manifest)
        return manifest

    def digest(self) -> str:
        """sha256 over what decides an embedding: the encoder's bytes and how a slice becomes its picture."""
        decisive = [self.sha256[ENCODER_FILE], self.input_size, self.channels, dataclasses.asdict(self.scaling)]
        text = json.dumps([*decisive, self.resize, self.padding, self.embedding_shape], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load_manifest(folder: str | Path) -> Manifest:
    """Reads `manifest.json` and verifies both graphs against it.

    Args:
        folder: An export made by `python -m export.sam`.

    Raises:
        FileNotFoundError: The folder or one of its files is not there; the message names the export command.
        ValueError: The manifest cannot be read, or a graph is not the one that was verified at export.
    """
    folder = Path(folder)
    for name in (MANIFEST_FILE, ENCODER_FILE, DECODER_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"Expected an exported SAM with {name}. Make it with: "
                f"python -m export.sam --family=lite_medsam --output={folder}. Received: folder={str(folder)!r}."
            )
    path = folder / MANIFEST_FILE
    try:
        manifest = Manifest.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"Expected a SAM manifest; export again with --force. Received: {path}: {error!r}.") from error
    for name in (ENCODER_FILE, DECODER_FILE):
        actual = file_sha256(folder / name)
        if actual != manifest.sha256.get(name):
            raise ValueError(
                f"Expected the graph that was verified at export, sha256 {manifest.sha256.get(name)}; the file was "
                f"changed or swapped: export again with --force. Received: {folder / name} with sha256 {actual}."
            )
    return manifest


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _check_rules(manifest: Manifest) -> None:
    """A rule that this version does not know must stop the run rather than be guessed."""
    known = {
        "dims": (2, 3),
        "resize": ("longer_side_linear",),
        "padding": ("end_zeros",),
    }
    for name, allowed in known.items():
        if getattr(manifest, name) not in allowed:
            raise ValueError(
                f"Expected {name} to be one of {allowed}; use the version of semisam-tf that made the export. "
                f"Received: {name}={getattr(manifest, name)!r}."
            )
    if manifest.scaling.unit not in ("slice", "scan"):
        raise ValueError(f"Expected scaling.unit 'slice' or 'scan'. Received: unit={manifest.scaling.unit!r}.")
    if set(manifest.prompts) != set(PROMPT_KINDS):
        raise ValueError(f"Expected prompts to say for each of {PROMPT_KINDS}. Received: {dict(manifest.prompts)}.")
