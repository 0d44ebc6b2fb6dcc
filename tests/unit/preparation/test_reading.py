"""Files that cannot be used: each is named, with what is wrong. Digests: what counts as the same scan."""

import numpy as np
import pytest
import SimpleITK as sitk

from semisam_tf.data.itk import write_image
from semisam_tf.preparation.reading import CaseFacts, ReadingOptions, case_facts, plain, read_case, source_sha256
from semisam_tf.preparation.sources import Source

OPTIONS = ReadingOptions()
AFFINE = np.array([[0, 0, 1.5, 10], [-2, 0, 0, 50], [0, -1, 0, -20], [0, 0, 0, 1.0]])  # PIR


def image(size=(4, 5, 6)):
    return np.random.default_rng(0).integers(0, 100, size).astype(np.int16)


def mask(size=(4, 5, 6)):
    values = np.zeros(size, np.uint8)
    values[1:3, 1:3, 1:3] = 1
    return values


def with_nan(array):
    array = array.astype(np.float32)
    array[0, 0, 0] = np.nan
    return array


def moved(mm):
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


@pytest.mark.parametrize(
    ("bad", "array", "affine", "message"),
    [
        ("image", with_nan(image()), AFFINE, "1 voxels that are NaN or infinite"),
        ("image", image((4, 5, 1)), AFFINE, "4 x 5 x 1 voxels, a single slice"),
        ("image", np.full((4, 5, 6), 7, np.int16), AFFINE, "the same value, 7, in every voxel"),
        ("label", mask((4, 5, 7)), AFFINE, "4 x 5 x 7; resample it to the image"),
        ("label", mask(), moved(3.0), "corners up to 3 mm apart"),
        ("label", mask(), AFFINE * [-1, 1, 1, 1], "another origin, spacing or orientation"),
        ("label", mask() * np.float32(0.5), AFFINE, "values from 0.0 to 0.5 with fractions or NaN"),
        ("label", with_nan(mask()), AFFINE, "1 voxels that are NaN or infinite"),
    ],
)
def test_bad_files_are_named(tmp_path, write_scan, bad, array, affine, message):
    files = {"image": (image(), AFFINE), "label": (mask(), AFFINE)} | {bad: (array, affine)}
    paths = {name: write_scan(tmp_path / f"{name}.nii.gz", *content) for name, content in files.items()}
    source = Source("x", (paths["image"],), paths["label"] if bad == "label" else None)
    with pytest.raises(ValueError, match=message) as caught:
        read_case(source, OPTIONS)
    assert str(paths[bad]) in str(caught.value)


def test_nan_in_a_type_of_file_that_itk_reads_as_it_is(tmp_path, write_scan):
    scan = write_scan(tmp_path / "a.nrrd", with_nan(image()), AFFINE)
    with pytest.raises(ValueError, match=r"a.nrrd. Received: 1 voxels that are NaN"):
        read_case(Source("x", (scan,)), OPTIONS)
    good, label = (
        write_scan(tmp_path / "b.nrrd", image(), AFFINE),
        write_scan(tmp_path / "c.nrrd", with_nan(mask()), AFFINE),
    )
    with pytest.raises(ValueError, match=r"c.nrrd. Received: values from nan to nan with fractions or NaN"):
        read_case(Source("x", (good,), label), OPTIONS)


@pytest.mark.parametrize("step", [1, 1000])
def test_an_image_given_as_mask(tmp_path, write_scan, step):
    values = np.arange(8 * 8 * 8, dtype=np.int32).reshape(8, 8, 8) * step
    scan, label = (write_scan(tmp_path / name, values, AFFINE) for name in ("a.nii", "b.nii"))
    with pytest.raises(ValueError, match=r"b.nii. Received: 512, as an image has them"):
        read_case(Source("x", (scan,), label), OPTIONS)


def test_a_fourth_axis_is_refused_unless_it_is_said_to_be_channels(tmp_path):
    path = tmp_path / "x.nii.gz"
    array = np.random.default_rng(1).normal(size=(2, 6, 5, 4)).astype(np.float32)  # t, z, y, x
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(path))
    with pytest.raises(ValueError, match=r"x.nii.gz. Received: 2, along a fourth axis.*--fourth_axis=channels"):
        read_case(Source("x", (path,)), OPTIONS)
    for n in (0, 2):
        volume = read_case(Source("x", (path,)), ReadingOptions(channels_of_file=n)).volume
        np.testing.assert_array_equal(volume.image, array.transpose(3, 2, 1, 0))
    with pytest.raises(ValueError, match="Expected 4 value"):
        read_case(Source("x", (path,)), ReadingOptions(channels_of_file=4))


def test_a_mask_with_a_fourth_axis_is_refused(tmp_path, write_scan):
    scan = write_scan(tmp_path / "x.nii.gz", image(), np.diag([-1.0, -1, 1, 1]))
    one_hot = tmp_path / "mask.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 6, 5, 4), np.uint8), isVector=False), str(one_hot))
    with pytest.raises(ValueError, match=r"mask.nii.gz. Received: 2; join the classes"):
        read_case(Source("x", (scan,), one_hot), OPTIONS)


@pytest.mark.parametrize(
    ("size", "affine", "message"),
    [
        ((4, 5, 7), AFFINE, "Received: 4 x 5 x 7; resample one to the other"),
        ((4, 5, 6), moved(3), "corners up to 3 mm"),
    ],
)
def test_channels_that_do_not_lie_on_each_other(tmp_path, write_scan, size, affine, message):
    first = write_scan(tmp_path / "a.nii.gz", image(), AFFINE)
    second = write_scan(tmp_path / "b.nii.gz", image(size), affine)
    with pytest.raises(ValueError, match=message) as caught:
        read_case(Source("x", (first, second)), OPTIONS)
    assert str(second) in str(caught.value)


def test_one_empty_channel_of_two_is_a_warning(tmp_path, write_scan):
    first = write_scan(tmp_path / "a.nii.gz", image(), AFFINE)
    second = write_scan(tmp_path / "b.nii.gz", np.zeros((4, 5, 6), np.uint8), AFFINE)
    case = read_case(Source("x", (first, second)), OPTIONS)
    assert case.volume.image.shape == (4, 5, 6, 2)
    assert case.warnings == (f"{second}: a channel has the same value in every voxel.",)


def test_facts_of_a_case(tmp_path, write_scan):
    values = np.where(mask() > 0, 205, 0).astype(np.int16)
    source = Source(
        "x", (write_scan(tmp_path / "a.nii.gz", image(), AFFINE),), write_scan(tmp_path / "b.nrrd", values, AFFINE)
    )
    facts = case_facts(source, OPTIONS, "digest")
    assert facts.size_vox == (4, 5, 6)
    np.testing.assert_allclose(facts.spacing_mm, (2, 1, 1.5))
    assert facts.orientation == "PIR"
    np.testing.assert_allclose(facts.spacing_in("RAS"), (1.5, 2, 1))
    assert facts.label_vox == {"0": 112, "205": 8}
    assert CaseFacts.from_dict(plain(facts)) == facts


def test_the_same_scan_in_another_file_type_and_orientation_has_the_same_content(tmp_path, write_scan):
    plain_file = write_scan(tmp_path / "a.nii.gz", image(), AFFINE)
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(plain_file)), "LPS"), str(tmp_path / "b.mha"))
    other = image()
    other[0, 0, 0] += 1
    third = write_scan(tmp_path / "c.nii.gz", other, AFFINE)
    contents = [
        case_facts(Source("x", (p,)), OPTIONS, "").content_sha256 for p in (plain_file, tmp_path / "b.mha", third)
    ]
    assert contents[0] == contents[1]
    assert contents[2] != contents[0]


def test_source_digest_follows_bytes_masks_and_detached_voxels(tmp_path, write_scan):
    scan, label = write_scan(tmp_path / "a.nii.gz", image()), write_scan(tmp_path / "b.nii.gz", mask())
    digest = source_sha256(Source("x", (scan,), label))
    assert digest == source_sha256(Source("y", (scan,), label))
    assert digest != source_sha256(Source("x", (scan,)))
    assert digest != source_sha256(Source("x", (label,), scan))
    header = tmp_path / "d.nhdr"
    sitk.WriteImage(sitk.GetImageFromArray(image().T), str(header))
    before = source_sha256(Source("x", (header,)))
    raw = tmp_path / "d.raw"
    content = bytearray(raw.read_bytes())
    content[0] ^= 1
    raw.write_bytes(content)
    assert source_sha256(Source("x", (header,))) != before


def test_a_file_without_orientation_keeps_its_axes(tmp_path):
    path = tmp_path / "x.nrrd"
    write_image(path, image(), (1, 1, 1), np.diag([-1.0, -1, 1, 1]))
    header, voxels = path.read_bytes().split(b"\n\n", 1)
    lines = [line for line in header.split(b"\n") if not line.startswith((b"space", b"kinds"))]
    path.write_bytes(b"\n".join(lines) + b"\n\n" + voxels)
    with pytest.raises(ValueError, match="--default_spacing_mm"):
        read_case(Source("x", (path,)), OPTIONS)
    case = read_case(Source("x", (path,)), ReadingOptions((1.0, 2.0, 3.0)))
    assert not case.volume.has_orientation
    assert case.volume.spacing_mm == (1.0, 2.0, 3.0)
    assert case.turned("LPS") is case
    assert "stores no orientation" in case.warnings[0]
