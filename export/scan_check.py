"""Masks on a real scan: what ONNX Runtime draws beside what the published torch model draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.family import Arrays, Family
from export.verify import one_at_a_time
from semisam_tf.sam.decoder_inputs import Prompts, decoder_arrays
from semisam_tf.sam.frame import SliceFrame
from semisam_tf.sam.intensity import clip_range
from semisam_tf.sam.manifest import DECODER_FILE, ENCODER_FILE, Manifest
from semisam_tf.sam.runtime import open_session
from semisam_tf.sam.session import images_of
from semisam_tf.sam.target import dice
from semisam_tf.sam.window import WindowFrame

# Two float32 computations may part on single voxels that lie on the threshold, not on more.
LEAST_DICE = 0.999
# The fixed box, as shares of the slice.
_BOX = (0.3, 0.7)


@dataclasses.dataclass(frozen=True)
class Scan:
    """A scan without its label: `image` float32 [X, Y, Z]; `spacing_mm` None where the file does not say."""

    name: str
    image: np.ndarray
    spacing_mm: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class ScanInputs:
    """What the graphs are fed for a scan.

    Attributes:
        name: Of the scan.
        images: float32 [k, channels, *input_size].
        prompts: Kind of prompt -> the decoder's inputs but the embeddings, for one item; the same for every image.
    """

    name: str
    images: np.ndarray
    prompts: dict[str, Arrays]


def read_scan(path: str | Path, spacing_mm: Sequence[float] | None = None) -> Scan:
    """Reads a scan, and no label.

    Args:
        path: HDF5 with a dataset `image` [X, Y, Z], or any format of SimpleITK (NIfTI, NRRD, MetaImage).
        spacing_mm: Overrules the file's; HDF5 has none.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It cannot be read, or does not hold one three-dimensional image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected --verify_scan to name a scan. Received: {path}, which is not there.")
    try:
        image, found = _read_h5(path) if path.suffix in (".h5", ".hdf5") else _read_itk(path)
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(
            "Expected --verify_scan to be HDF5 with a dataset `image`, NIfTI or NRRD. "
            f"Received: {path}: {str(error).strip().splitlines()[-1]}"
        ) from None
    if image.ndim != 3:
        raise ValueError(f"Expected a scan [X, Y, Z] of one channel. Received: {path} of shape {image.shape}.")
    spacing = tuple(float(mm) for mm in spacing_mm) if spacing_mm else found
    return Scan(f"{path.parent.name}/{path.name}", np.asarray(image, np.float32), spacing)


def _read_h5(path: Path) -> tuple[np.ndarray, None]:
    import h5py

    with h5py.File(path) as file:
        return file["image"][:], None


def _read_itk(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    # [z, y, x] -> [X, Y, Z]
    return SimpleITK.GetArrayFromImage(image).T, tuple(image.GetSpacing())


def scan_inputs(scan: Scan, manifest: Manifest, count: int) -> ScanInputs:
    """Pictures of `count` slices (2D) or windows (3D) of the scan, and a central box and point.

    Raises:
        ValueError: A 3D model, and nobody says how large a voxel is.
    """
    pictures, resized = _slices(scan, manifest, count) if manifest.dims == 2 else _windows(scan, manifest, count)
    images = np.concatenate([images_of(picture[None], manifest) for picture in pictures])
    size = np.array(resized, np.float32)
    kinds = {
        "box": Prompts(boxes=np.stack([share * size for share in _BOX])[None]),
        "point": Prompts(points=(size / 2)[None, None]),
    }
    prompts = {kind: decoder_arrays(manifest, prompt) for kind, prompt in kinds.items() if manifest.prompts[kind]}
    return ScanInputs(scan.name, images, prompts)


def picture_count(scan: Scan, manifest: Manifest, count: int) -> int:
    """How many pictures `scan_inputs` makes: fewer than `count` where the scan is short.

    Raises:
        ValueError: As `scan_inputs`.
    """
    items = scan.image.shape[2] if manifest.dims == 2 else len(_window_frame(scan, manifest).starts)
    return len(_spread(items, count))


def _spread(n: int, count: int) -> list[int]:
    """`count` different indices about the middle half of n, or as many as there are."""
    return sorted({round(i) for i in np.linspace(n / 4, 3 * n / 4, max(1, min(count, n)))} & set(range(n))) or [n // 2]


def _slices(scan: Scan, manifest: Manifest, count: int) -> tuple[list[np.ndarray], tuple[int, ...]]:
    planes = scan.image.transpose(2, 1, 0)
    frame = SliceFrame.of(planes.shape[1:], manifest)
    scan_range = clip_range(scan.image, manifest.scaling)
    chosen = _spread(len(planes), count)
    return [frame.picture(planes[i], manifest.scaling, scan_range) for i in chosen], frame.resized


def _window_frame(scan: Scan, manifest: Manifest) -> WindowFrame:
    if scan.spacing_mm is None:
        raise ValueError(
            "Expected --scan_spacing_mm=X,Y,Z, as the file does not say how large a voxel is and this model sees "
            f"volumes. Received: --verify_scan={scan.name}."
        )
    return WindowFrame.of(scan.image.shape, scan.spacing_mm, manifest)


def _windows(scan: Scan, manifest: Manifest, count: int) -> tuple[list[np.ndarray], tuple[int, ...]]:
    frame = _window_frame(scan, manifest)
    scan_range = clip_range(scan.image, manifest.scaling)
    padded = frame.on_models_grid(scan.image, scan_range)
    chosen = _spread(len(frame.starts), count)
    return [frame.picture(i, padded, manifest.scaling, scan_range) for i in chosen], manifest.input_size


def masks(
    decode: Callable[[Arrays], Arrays], embeddings: np.ndarray, prompts: dict[str, Arrays], threshold: float
) -> list[np.ndarray]:
    """One mask, bool `logits_size`, for each kind of prompt on each embedding."""
    return [
        decode({**arrays, "embeddings": embedding[None]})["logits"][0] > threshold
        for arrays in prompts.values()
        for embedding in embeddings
    ]


def onnx_graph(path: Path) -> Callable[[Arrays], Arrays]:
    """An exported graph as a function of arrays by role; roles are its tensors' names."""
    session = open_session(path)
    inputs, outputs = ([tensor.name for tensor in t] for t in (session.get_inputs(), session.get_outputs()))

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(outputs, {name: arrays[name] for name in inputs}), strict=True))

    return run


def check_scan(family: Family, folder: Path, manifest: Manifest, inputs: ScanInputs) -> dict[str, Any]:
    """Compares the finished graphs with torch, mask by mask, from the same pictures.

    Returns:
        The manifest's `scan_check`.
    """
    images = {"images": inputs.images}
    threshold = manifest.mask_threshold_logits
    expected = masks(
        family.published_decoder,
        one_at_a_time(family.published_encoder, images)["embeddings"],
        inputs.prompts,
        threshold,
    )
    encode, decode = onnx_graph(folder / ENCODER_FILE), onnx_graph(folder / DECODER_FILE)
    got = masks(decode, one_at_a_time(encode, images)["embeddings"], inputs.prompts, threshold)
    return {
        "scan": inputs.name,
        "slices": len(inputs.images),
        "worst_mask_dice": worst_dice(expected, got),
        "voxels_differing": int(sum(np.count_nonzero(a != b) for a, b in zip(expected, got, strict=True))),
    }


def worst_dice(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float | None:
    """Least Dice of the pairs, but for those that are both empty or both full: they agree whatever the graphs compute.

    None where all are such, as with random weights: nothing was compared.
    """
    pairs = zip(expected, got, strict=True)
    telling = [(a, b) for a, b in pairs if not (np.array_equal(a, b) and a.all() == a.any())]
    return min((dice(a, b) for a, b in telling), default=None)
