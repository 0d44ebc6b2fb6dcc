"""ONNX files made elsewhere, in the layouts of Meta's script and samexporter: adopted and driven by the manifest alone.

The encoder is the average of 4x4 blocks of the normalised picture. Mask k of the decoder is, in every pixel,
    mean of the embedding + sum over points of code * x + the mask prompt, if there is one + 100 k
and its predicted IoU k + the height it is told of / 1000.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export.adopt import adopt
from export.adopt_flags import Adoption
from semisam_tf.sam.decoder_inputs import Prompts
from semisam_tf.sam.manifest import load_manifest
from semisam_tf.sam.session import SamSession

SIDE, BLOCK = 16, 4
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
DECODER_INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
DECODER_OUTPUTS = ("masks", "iou_predictions", "low_res_masks")


class Encoder(torch.nn.Module):
    def __init__(self, preprocess: bool = False) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.weight = torch.nn.Parameter(torch.ones(3, 1, BLOCK, BLOCK) / BLOCK**2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.preprocess:
            x = ((x - MEAN) / STD).permute(2, 0, 1)
            x = torch.nn.functional.pad(x, (0, SIDE - x.shape[2], 0, SIDE - x.shape[1]))[None]
        return torch.nn.functional.conv2d(x, self.weight, stride=BLOCK, groups=3)


class Decoder(torch.nn.Module):
    def __init__(self, masks: int = 4, poison: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("steps", 100.0 * torch.arange(masks).reshape(1, -1, 1, 1))
        self.poison = poison

    def forward(self, embeddings: Any, points: Any, labels: Any, masks: Any, has_mask: Any, size: Any) -> Any:
        level = embeddings.mean(dim=(1, 2, 3)) * self.poison + (labels * points[..., 0]).sum(dim=1)
        low = masks * has_mask.reshape(-1, 1, 1, 1) + level.reshape(-1, 1, 1, 1) + self.steps
        iou = self.steps.reshape(1, -1) / 100 + size[0] / 1000 + 0 * level.reshape(-1, 1)
        return torch.nn.functional.interpolate(low, scale_factor=2.0), iou, low


def write_encoder(path: Path, preprocess: bool = False, **options: Any) -> Path:
    image = torch.zeros(SIDE, SIDE, 3) if preprocess else torch.zeros(1, 3, SIDE, SIDE)
    free = {"input_image": {0: "image_height", 1: "image_width"}} if preprocess else options.pop("free", {})
    return write(Encoder(preprocess), (image,), ["input_image"], ["image_embeddings"], free, path)


def write_decoder(path: Path, free: bool = False, names: tuple[str, ...] = DECODER_INPUTS, **options: Any) -> Path:
    side = SIDE // BLOCK
    arrays = (
        torch.zeros(1, 3, side, side), torch.zeros(1, 5, 2), torch.zeros(1, 5), torch.zeros(1, 1, SIDE, SIDE),
        torch.zeros(1), torch.tensor([150.0, 200.0]),
    )  # fmt: skip
    axes = {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}}
    if free:
        axes = {name: {0: "batch", **axes.get(name, {})} for name in DECODER_INPUTS[:-1]}
    return write(Decoder(**options), arrays, list(names), list(DECODER_OUTPUTS), axes, path)


def write(
    module: torch.nn.Module, arrays: tuple, inputs: list[str], outputs: list[str], free: dict, path: Path
) -> Path:
    with warnings.catch_warnings():
        # Of the exporter, which is not what is tested here.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), arrays, str(path), dynamo=False, opset_version=17, input_names=inputs, output_names=outputs,
            dynamic_axes=free,
        )  # fmt: skip
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "files"
    folder.mkdir()
    return write_encoder(folder / "a.encoder.onnx"), write_decoder(folder / "a.decoder.onnx")


def level(picture: np.ndarray) -> float:
    """Mean of the embedding of a picture [rows, columns] in [0, 1], zeros around it, worked out by hand."""
    normalised = [(255 * picture - mean) / std for mean, std in zip(MEAN.tolist(), STD.tolist(), strict=True)]
    return float(np.sum(normalised) / (3 * SIDE**2))


def test_adopted_files_answer_as_worked_out_by_hand(files: tuple[Path, Path], tmp_path: Path) -> None:
    adopt(*files, tmp_path / "sam")
    session = SamSession(tmp_path / "sam")
    picture = np.random.default_rng(0).random((16, 12), np.float32)
    embedding = session.encode(picture[None])
    assert embedding.shape == (1, 3, 4, 4)
    base = level(picture)
    # Points are (row, column); the graph is given (x, y). Codes: 1 inside, 0 outside, 2 and 3 the box's corners.
    points = np.array([[[1, 5], [2, 7]], [[3, 9], [4, 11]]], np.float32)
    decoded = session.decode(embedding, Prompts(points=points, point_labels=np.array([[1, 1], [1, 0]])))
    assert decoded.logits.shape == (2, SIDE, SIDE)
    np.testing.assert_allclose(decoded.logits.reshape(2, -1).T, np.tile([base + 12, base + 9], (256, 1)), rtol=1e-5)
    np.testing.assert_allclose(decoded.predicted_iou, [0.016, 0.016], rtol=1e-5)
    boxes = np.array([[[1, 5], [8, 10]]], np.float32)
    np.testing.assert_allclose(session.decode(embedding, Prompts(boxes=boxes)).logits, base + 2 * 5 + 3 * 10, rtol=1e-5)
    masks = np.random.default_rng(1).standard_normal((1, SIDE, SIDE)).astype(np.float32)
    decoded = session.decode(embedding, Prompts(points=points[:1], masks=masks))
    np.testing.assert_allclose(decoded.logits, masks + base + 12, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("free", "calls"), [(False, 5), (True, 1)])
def test_decoder_of_batch_one_is_looped_over(tmp_path: Path, free: bool, calls: int) -> None:
    encoder, decoder = write_encoder(tmp_path / "e.onnx"), write_decoder(tmp_path / "d.onnx", free)
    adopt(encoder, decoder, tmp_path / "sam")
    session = SamSession(tmp_path / "sam")
    rows = np.arange(5, dtype=np.float32)
    answer = session.decode(np.zeros((1, 3, 4, 4)), Prompts(points=np.stack([0 * rows, rows], axis=1)[:, None]))
    np.testing.assert_allclose(answer.logits[:, 0, 0], rows)
    assert session.counts()["decoder_calls"] == calls


def test_encoder_with_preprocessing_inside_gives_the_same_embedding(files: tuple[Path, Path], tmp_path: Path) -> None:
    inside = write_encoder(tmp_path / "inside.onnx", preprocess=True)
    adopt(*files, tmp_path / "plain")
    values = adopt(inside, files[1], tmp_path / "sam", Adoption(input_size=(SIDE, SIDE)))
    assert (values["image_layout"], values["padding"]) == ("channels_last_unbatched", "in_graph")
    assert values["scaling"]["mean"] == [0, 0, 0]
    pictures = np.random.default_rng(0).random((2, 9, 16), np.float32)
    a, b = (SamSession(tmp_path / name).encode(pictures) for name in ("plain", "sam"))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_manifest_has_metas_conventions_and_says_so(
    files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        values = adopt(*files, tmp_path / "sam")
    assumed = "\n".join(record.getMessage() for record in caplog.records)
    for what in (
        "longer side", "pixel mean (123.675", "zeros below", "logits are above 0", "box, point and mask", "0.5"
    ):  # fmt: skip
        assert what in assumed
    manifest = load_manifest(tmp_path / "sam")
    assert manifest.to_dict() == values
    assert (manifest.input_size, manifest.embedding_shape, manifest.logits_size) == ((16, 16), (3, 4, 4), (16, 16))
    assert (manifest.mask_size, manifest.mask_index, manifest.coordinate_axes) == ((16, 16), 0, (1, 0))
    np.testing.assert_allclose(np.multiply(manifest.scaling.mean, 255), MEAN)
    np.testing.assert_allclose(np.multiply(manifest.scaling.std, 255), STD)
    assert manifest.prompts == {"box": True, "point": True, "mask": True}
    assert manifest.point_codes == {"background": 0, "foreground": 1, "padding": -1, "box_first": 2, "box_last": 3}
    assert manifest.source["name"] == "a.encoder.onnx, a.decoder.onnx"
    assert (manifest.max_errors, manifest.comparisons, manifest.exporter) == ({}, (), "adopted")
    # Byte for byte.
    for file, name in zip(files, ("encoder.onnx", "decoder.onnx"), strict=True):
        assert file.read_bytes() == (tmp_path / "sam" / name).read_bytes()


def test_decoder_that_picks_its_mask_inside_is_pointed_out(
    files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        adopt(files[0], write_decoder(tmp_path / "d.onnx", masks=1), tmp_path / "sam")
    assert any("best of several" in record.getMessage() for record in caplog.records)
    decoded = SamSession(tmp_path / "sam").decode(np.zeros((1, 3, 4, 4)), Prompts(boxes=np.ones((1, 2, 2), np.float32)))
    np.testing.assert_allclose(decoded.logits, 5)


def test_what_was_said_is_not_assumed(
    files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = Adoption(
        name="medsam", encoder_layout="channels_first", input_size=(SIDE, SIDE), padding="end_zeros",
        pixel_mean=(0,) * 3, pixel_std=(255,) * 3, clip_percentiles=(1, 99), intensity_unit="scan", mask_threshold=-1.0,
        mask_index=2, prompts=("box",), licence="Apache-2.0",
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        adopt(*files, tmp_path / "sam", said)
    assert [record.getMessage() for record in caplog.records if "assumed" in record.getMessage()] == [
        "assumed the longer side of a slice resized to the input's, linearly (Meta's ResizeLongestSide)"
    ]
    manifest = load_manifest(tmp_path / "sam")
    assert (manifest.family, manifest.licence, manifest.mask_threshold_logits) == ("medsam", "Apache-2.0", -1)
    assert (manifest.scaling.mean, manifest.scaling.std, manifest.scaling.unit) == ((0,) * 3, (1,) * 3, "scan")
    assert manifest.scaling.clip_percentiles == (1, 99)
    session = SamSession(tmp_path / "sam")
    decoded = session.decode(np.zeros((1, 3, 4, 4)), Prompts(boxes=np.zeros((1, 2, 2), np.float32)))
    np.testing.assert_allclose(decoded.logits, 200)
    np.testing.assert_allclose(decoded.predicted_iou, 2.016)
    with pytest.raises(ValueError, match="adopted with"):
        session.decode(np.zeros((1, 3, 4, 4)), Prompts(points=np.zeros((1, 1, 2), np.float32)))


def test_weights_beside_the_graph_come_along_and_are_verified(files: tuple[Path, Path], tmp_path: Path) -> None:
    encoder = tmp_path / "apart" / "e.onnx"
    encoder.parent.mkdir()
    model = onnx.load(files[0])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2000, np.float32), "unused"))
    onnx.save_model(model, encoder, save_as_external_data=True, location="weights.bin", size_threshold=0)
    values = adopt(encoder, files[1], tmp_path / "sam")
    assert sorted(values["sha256"]) == ["decoder.onnx", "encoder.onnx", "encoder.onnx.data"]
    adopt(*files, tmp_path / "plain")
    pictures = np.random.default_rng(0).random((1, SIDE, SIDE), np.float32)
    embeddings = [SamSession(tmp_path / name).encode(pictures) for name in ("plain", "sam")]
    np.testing.assert_array_equal(*embeddings)
    (tmp_path / "sam" / "encoder.onnx.data").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"changed or swapped.*encoder\.onnx\.data"):
        load_manifest(tmp_path / "sam")
    (tmp_path / "apart" / "weights.bin").unlink()
    with pytest.raises(ValueError, match=r"--encoder.*data beside it.*e\.onnx"):
        adopt(encoder, files[1], tmp_path / "other")


def renamed(old: str, new: str) -> Callable[[Path], Path]:
    names = tuple(new if name == old else name for name in DECODER_INPUTS)
    return lambda folder: write_decoder(folder / "d.onnx", names=names)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (renamed("orig_im_size", "hq_token_only"), r"Meta's signature.*unknown=\['hq_token_only'\]; inputs image_emb"),
        (
            renamed("point_labels", "labels"),
            r"missing=\['point_labels'\], unknown=\['labels'\].*labels \[1, 5\] float32",
        ),
        (renamed("has_mask_input", "orig"), r"unknown=\['orig'\]"),
        (lambda folder: write_decoder(folder / "d.onnx", poison=float("nan")), "finite numbers of decoder.onnx.*NaN"),
        (
            lambda folder: write_encoder(folder / "d.onnx"),
            r"missing=\['image_embeddings', 'point_coords', 'point_labels'",
        ),
        (lambda folder: folder / "absent.onnx", r"--decoder to name an ONNX file.*absent\.onnx"),
        (lambda folder: Path(__file__), r"--decoder to be an ONNX graph.*test_adopt\.py"),
    ],
)
def test_decoder_that_cannot_be_driven_is_refused_and_nothing_written(
    files: tuple[Path, Path], tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        adopt(files[0], make(tmp_path / "files"), tmp_path / "sam")
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_encoder_that_cannot_be_driven_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one input, the image.*a\.decoder\.onnx with inputs image_embeddings"):
        adopt(files[1], files[1], tmp_path / "sam")
    with pytest.raises(ValueError, match=r"--input_size.*\(8, 8\)"):
        adopt(*files, tmp_path / "sam", Adoption(input_size=(8, 8)))
    with pytest.raises(ValueError, match=r"--pixel_std.*-1"):
        adopt(*files, tmp_path / "sam", Adoption(pixel_std=(1, 1, -1)))
    with pytest.raises(ValueError, match=r"--mask_index below.*--mask_index=9"):
        adopt(*files, tmp_path / "sam", Adoption(mask_index=9))
    wide = write(torch.nn.Conv2d(3, 3, 8, 8), (torch.zeros(1, 3, 16, 16),), ["x"], ["y"], {}, tmp_path / "w.onnx")
    with pytest.raises(ValueError, match=r"takes what the encoder gives.*w\.onnx.*\[1, 3, 2, 2\].*\[1, 3, 4, 4\]"):
        adopt(wide, files[1], tmp_path / "sam")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "w.onnx"]


def test_command_adopts_without_torch(files: tuple[Path, Path], repo_root: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from export.sam import run; run()"
    flags = [
        "--adopt", f"--encoder={files[0]}", f"--decoder={files[1]}", f"--output={tmp_path / 'sam'}", "--name=mine",
        "--input_size=16,16", "--clip_percentiles=2,98", "--prompts=box,point", "--pixel_mean=1,2,3",
        "--mask_threshold=0.5", "--licence=CC0",
    ]  # fmt: skip
    command = [sys.executable, "-c", code, *flags]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "mine in" in result.stdout
    assert "assumed" in result.stderr
    values = json.loads((tmp_path / "sam" / "manifest.json").read_text(encoding="utf-8"))
    assert values["scaling"]["clip_percentiles"] == [2, 98]
    np.testing.assert_allclose(values["scaling"]["mean"], [1 / 255, 2 / 255, 3 / 255])
    np.testing.assert_allclose(values["scaling"]["std"], STD / 255)
    assert values["prompts"] == {"box": True, "point": True, "mask": False}
    assert (values["mask_threshold_logits"], values["licence"]) == (0.5, "CC0")
    for bad in ("--input_size=16", "--pixel_mean=a,b", "--prompts=scribble"):
        result = subprocess.run([*command, bad], cwd=repo_root, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert result.stderr.startswith("error: Expected --")
        assert len(result.stderr.splitlines()) == 1
