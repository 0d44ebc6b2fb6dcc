"""`semisam_tf.sam` on real graphs against the published packages as their users call them: a picture in, clicks in
(x, y) or voxels, logits out. Random weights: a wrong order of axes, padding or code shows as well as with trained ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import sam_med3d, sam_vit
from export.family import Family
from export.graphs import write_graphs
from export.record import described, sha256_of
from semisam_tf.sam.decoder_inputs import Prompts
from semisam_tf.sam.manifest import MANIFEST_FILE
from semisam_tf.sam.prompts import component_prompts
from semisam_tf.sam.session import SamSession
from semisam_tf.sam.views import SliceViews, WindowViews

SIDE = 256


def exported(family: Family, folder: Path) -> SamSession:
    """The graphs as the command writes them, without its comparisons."""
    write_graphs(family, folder)
    values = {**described(family, 17), "sha256": sha256_of(folder)}
    (folder / MANIFEST_FILE).write_text(json.dumps(values), encoding="utf-8")
    return SamSession(folder)


def close(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Within 1e-4 of the largest magnitude: float32 through a transformer."""
    return bool(np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[SamSession, Any]:
    """SAM ViT-B of two blocks at 256 pixels, exported, and Meta's predictor on the same weights."""
    family = sam_vit.load(random_seed=0, depth=2, image_size=SIDE)
    net = sam_vit.build("vit_b", depth=2, image_size=SIDE, random_seed=0).eval()
    # Importable: `build` has put stand-ins in the place of torchvision while the package was read.
    from segment_anything import predictor
    from segment_anything.utils import transforms

    patch = pytest.MonkeyPatch()
    # The picture is of the right size already: nothing is left of torchvision's resizing.
    patch.setattr(transforms, "resize", lambda image, size: image)
    patch.setattr(transforms, "to_pil_image", lambda image: image)
    yield exported(family, tmp_path_factory.mktemp("vit")), predictor.SamPredictor(net)
    patch.undo()


@pytest.mark.parametrize("kinds", [("point",), ("box",), ("point", "mask"), ("box", "point"), ("box", "mask")])
def test_slice_as_metas_predictor_sees_it(vit: tuple[SamSession, Any], kinds: tuple[str, ...]) -> None:
    session, predictor = vit
    rng = np.random.default_rng(1)
    # Longer side 256: no resizing, but padding to the right. A tenth of the pixels at each end: nothing is clipped.
    plane = np.clip(rng.integers(-30, 286, (SIDE, 180)), 0, 255).astype(np.uint8)
    predictor.set_image(np.repeat(plane[..., None], 3, axis=2))
    point, box = np.array([[60, 170]]), np.array([[30, 100], [90, 175]])  # (row, column)
    mask = rng.standard_normal(session.manifest.mask_size).astype(np.float32)
    _, iou, logits = predictor.predict(
        point_coords=point[:, ::-1] if "point" in kinds else None,
        point_labels=np.array([1]) if "point" in kinds else None,
        box=box[:, ::-1].ravel() if "box" in kinds else None,
        mask_input=mask[None] if "mask" in kinds else None,
        multimask_output=False,
    )
    # [X, Y, Z] with one slice along Z: X runs along columns.
    views = SliceViews(plane.T[..., None].astype(np.float32) * 3 - 50, session.manifest, 2, 1)
    decoded = session.decode(
        session.encode(views.picture(0)[None]),
        Prompts(
            points=point[None] if "point" in kinds else None,
            boxes=box[None] if "box" in kinds else None,
            masks=mask[None] if "mask" in kinds else None,
        ),
    )
    assert close(decoded.logits[0], logits[0])
    assert close(decoded.predicted_iou, iou)


def test_window_as_sam_med3ds_inference_sees_it(tmp_path: Path) -> None:
    family = sam_med3d.load(random_seed=0, depth=1)
    session = exported(family, tmp_path)
    rng = np.random.default_rng(2)
    size = (100, 128, 90)
    scan = np.where(rng.random(size) < 0.3, 0, rng.normal(300, 80, size).clip(1)).astype(np.float32)
    organ = np.zeros(size, bool)
    organ[30:51, 70:81, 20:41] = True
    # As published: crop or pad to 128 with 0, then ZNormalization over the voxels above 0.
    padded = np.zeros((128,) * 3, np.float32)
    padded[14:114, :, 19:109] = scan
    volume = torch.from_numpy(padded)
    above = volume[volume > 0]
    published = ((volume - above.mean()) / above.std())[None, None].numpy()
    # The innermost voxels of the organ are those 5 deep, the first of them (35, 75, 25); as published, a click is the
    # index in the cropped volume.
    clicks = np.float32([[[14 + 35, 75, 19 + 25], [0, 0, 0]]])
    roles = {
        "embeddings": family.published_encoder({"images": published})["embeddings"],
        "points": clicks,
        "point_labels": np.float32([[1, -1]]),
        "masks": np.zeros((1, *session.manifest.mask_size), np.float32),
        "has_masks": np.zeros(1, np.float32),
    }
    expected = family.published_decoder(roles)

    views = WindowViews(scan - 1024, (1.5, 1.5, 1.5), session.manifest)
    sightings, _ = views.sightings(organ.astype(np.uint8), None, 2, component_prompts)
    assert sightings[0].points_vox.tolist() == [[35, 75, 25]]
    picture = views.picture(sightings[0].view)
    np.testing.assert_allclose(picture, published[0, 0], atol=1e-4)
    prompts = views.prompts(sightings, np.stack([~organ, organ]).astype(np.float32), ("point",))
    decoded = session.decode(session.encode(picture[None]), prompts)
    assert close(decoded.logits, expected["logits"])
    assert close(decoded.predicted_iou, expected["predicted_iou"])
    # Back on the scan: the part of the window that the scan takes.
    (on_scan,) = views.on_voxels(sightings, decoded.logits)
    full = torch.nn.functional.interpolate(
        torch.from_numpy(expected["logits"])[None], size=(128,) * 3, mode="trilinear", align_corners=False
    )[0, 0].numpy()
    assert close(on_scan, full[14:114, :, 19:109])
