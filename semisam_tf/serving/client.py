"""Asks a server for a mask: `python -m semisam_tf.serving.client --url=URL scan.nii.gz mask.nii.gz`."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from semisam_tf.options import OptionError, option, run_command

_NIFTI = (".nii", ".nii.gz")
# Formats of one file each: a header that names a second file beside it cannot be replaced in one step.
_MASK_SUFFIXES = (*_NIFTI, ".nrrd", ".mha")
_USAGE = "semisam_tf.serving.client --url=URL SCAN MASK"


@dataclasses.dataclass(frozen=True)
class ClientConfig:
    """Sends a scan to TensorFlow Serving and writes its mask: semisam_tf.serving.client [flags] SCAN MASK."""

    url: str = option("", "http://HOST:8501/v1/models/NAME or grpc://HOST:8500/NAME; https and grpcs with TLS.")
    scan: str = option("", "The scan; the first word without a flag.")
    mask: str = option("", f"The mask to write; the second word. Picks the format: {', '.join(_MASK_SUFFIXES)}.")
    timeout_s: float = option(600.0, "For everything, attempts while the server is unavailable included.", unit="s")


def read_scan(path: Path) -> bytes:
    """The bytes of a .nii or .nii.gz; of another format the bytes of a .nii with the same voxels and geometry.

    A file that does not say which way its axes run becomes one that does not, either, as `predict` takes it.

    Raises:
        FileNotFoundError, ValueError: No such file, none that can be read, or one without a voxel spacing.
    """
    if path.is_dir():
        raise ValueError(f"Expected one file as the scan. Received: a folder, {path}; convert a DICOM series first.")
    if not path.is_file():
        raise FileNotFoundError(f"Expected a scan. Received: {path}, which does not exist.")
    if path.name.endswith(_NIFTI):
        return path.read_bytes()
    from semisam_tf.data import itk, nifti

    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "scan.nii"
        _convert(path, converted)
        data = converted.read_bytes()
    has_spacing, has_orientation = itk.stores_grid(path)
    if not has_spacing:
        raise ValueError(f"Expected a voxel spacing: {path} stores none. Write it into the header.")
    return data if has_orientation else nifti.without_orientation(data)


def write_mask(path: Path, mask: bytes) -> None:
    """Writes the bytes of a .nii in the format of the suffix; geometry as it is."""
    from semisam_tf.atomic import replacing

    with replacing(path) as temporary:
        if path.name.endswith(".nii"):
            temporary.write_bytes(mask)
        elif path.name.endswith(".nii.gz"):
            temporary.write_bytes(gzip.compress(mask, 6, mtime=0))
        else:
            with tempfile.TemporaryDirectory() as folder:
                received = Path(folder) / "mask.nii"
                received.write_bytes(mask)
                _convert(received, temporary)


def _convert(source: Path, target: Path) -> None:
    import SimpleITK as sitk

    try:
        sitk.WriteImage(sitk.ReadImage(str(source)), str(target), useCompression=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"Expected a format that ITK reads and writes. Received: {source.name}: {reason}.") from error


def client_command(config: ClientConfig) -> int:
    """Asks, writes the mask, and says how confident the model is."""
    from semisam_tf.serving.transport import ask, parse_url

    _check(config)
    try:
        endpoint = parse_url(config.url)
    except ValueError as error:
        raise OptionError(str(error)) from error
    if endpoint.scheme.startswith("grpc"):
        from semisam_tf.flavour import is_installed

        if not is_installed("tensorflow_serving"):
            raise OptionError("--url=grpc://... needs tensorflow-serving-api, which is not installed. Use http://...")
    answer = ask(endpoint, read_scan(Path(config.scan)), config.timeout_s)
    write_mask(Path(config.mask), answer.mask)
    sys.stdout.write(f"{config.mask}  confidence {answer.confidence:.3f}\n")
    if not answer.located:
        sys.stderr.write("warning: the coarse pass missed a class; the whole scan was segmented.\n")
    return 0


def _check(config: ClientConfig) -> None:
    """Refuses, before the server works for it, what could not be written."""
    for name in ("url", "scan", "mask"):
        if not getattr(config, name):
            received = f" Received: SCAN {config.scan!r} and no {name.upper()}." if config.scan else ""
            raise OptionError(f"--{name} is needed: {_USAGE}.{received}")
    if not (math.isfinite(config.timeout_s) and config.timeout_s > 0):
        raise OptionError(f"--timeout_s: expected a finite time above 0 s. Received: {config.timeout_s}.")
    mask = Path(config.mask)
    if not mask.name.endswith(_MASK_SUFFIXES):
        raise OptionError(
            f"--mask: expected one file that ends in {', '.join(_MASK_SUFFIXES)} (.mhd, .nhdr and .hdr are headers of "
            f"a second file). Received: {config.mask!r}."
        )
    if not mask.parent.is_dir() or mask.is_dir():
        raise OptionError(f"--mask: expected a file in a folder that exists. Received: {config.mask!r}.")


def with_flags(argv: Sequence[str]) -> list[str]:
    """Turns the words that are left over behind the flags, as --url=URL or --url URL, into --scan and --mask.

    Raises:
        OptionError: More words than the two.
    """
    takes_next = {field.name for field in dataclasses.fields(ClientConfig)} | {"flagfile"}
    given: list[str] = []
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word == "--":
            words += rest
        elif not word.startswith("-"):
            words.append(word)
        else:
            given.append(word)
            if word.lstrip("-") in takes_next:  # the value is the next word
                given += itertools.islice(rest, 1)
    names = [n for n in ("scan", "mask") if not any(w.lstrip("-").split("=")[0] == n for w in given if w[:1] == "-")]
    if len(words) > len(names):
        raise OptionError(f"Expected {_USAGE}. Received: {len(words)} words beside the flags: {' '.join(words)!r}.")
    return given + [f"--{name}={word}" for name, word in zip(names, words, strict=False)]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    try:
        words = with_flags(sys.argv[1:] if argv is None else argv)
    except OptionError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return run_command(ClientConfig, "semisam_tf.serving.client", words, client_command)


if __name__ == "__main__":
    sys.exit(main())
