"""NIfTI bytes in and out of the graph, against ITK on the same bytes."""

import gzip
import itertools
import struct

import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from semisam_tf.config import Config
from semisam_tf.data.orientation import AXIS_CODES, axis_code, axis_order
from semisam_tf.data.volumes import CaseFiles, load_volume
from semisam_tf.inference.predictor import Predictor, network_of
from semisam_tf.serving import nifti_file, nifti_orientation
from semisam_tf.serving.graph import ServingModule
from semisam_tf.serving.pipeline import Limits, Pipeline

LIMITS = Limits(axis_vox=64, scan_vox=32**3, compressed_bytes=200_000)
BYTES = [tf.TensorSpec([], tf.string)]


@tf.function(input_signature=BYTES, autograph=False)
def read(data):
    header, volume = nifti_file.read(data, 1, LIMITS)
    return volume, header.spacing_mm


@tf.function(input_signature=BYTES, autograph=False)
def read_two(data):
    return nifti_file.read(data, 2, LIMITS)[1]


@tf.function(input_signature=BYTES, autograph=False)
def turn_to_pir(data):
    header, volume = nifti_file.read(data, 1, LIMITS)
    order = nifti_orientation.axis_order(header, "PIR")
    return order.apply(volume), order.undo(order.apply(volume)[..., 0]), order.permutation


@pytest.fixture(scope="module")
def served(runs):
    """The signature, and the Python pipeline; trained on LAS."""
    config = Config(**runs.CONFIG)
    model = network_of(config, 1, "teacher")
    kernel, bias = model.get_layer("out_conv").get_weights()
    model.get_layer("out_conv").set_weights([kernel * 20, bias * 0])
    module = ServingModule(Pipeline(config, model, limits=LIMITS), {}, "LAS")
    return module, Predictor(config, model, orientation="LAS")


def by_itk(tmp_path, data):
    path = tmp_path / ("scan.nii.gz" if data[:2] == b"\x1f\x8b" else "scan.nii")
    path.write_bytes(data)
    return load_volume(CaseFiles("case", path, None, "flat"), with_label=False)


@pytest.mark.parametrize("code", [2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("scaling", [(1, 0), (0, 0), (0.37, -12.5), (-2, 3), (np.nan, 0), (np.inf, 0), (2, np.nan)])
def test_values_are_itks(runs, tmp_path, code, order, scaling):
    kind = np.dtype(runs.NIFTI_TYPES[code])
    limit = 100 if kind.kind == "f" else min(np.iinfo(kind).max, 10**9)
    stored = (runs.scan((5, 4, 3))[..., 0] / 250 * limit).clip(0 if kind.kind == "u" else -limit, limit)
    data = runs.nifti(stored, code, order, *scaling, spacing=(0.8, 1.5, 2.25), qform=(1, 0, 0, 0, 1, 2, 3))
    if code % 3:
        data = gzip.compress(data)
    volume, spacing = read(data)
    expected = by_itk(tmp_path, data)
    np.testing.assert_allclose(volume, expected.image, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(spacing, expected.spacing_mm, rtol=1e-7)
    assert np.ptp(expected.image) > 1


@pytest.mark.parametrize("slope", [0, np.nan])
def test_without_slope_there_is_no_intercept(runs, slope):
    """As nifti1.h says. ITK adds the intercept; a shift of all voxels is undone by the z-score."""
    values = runs.scan((5, 4, 3))
    np.testing.assert_array_equal(read(runs.nifti(values, slope=slope, inter=7))[0], values)


@pytest.mark.parametrize("units", [0, 1, 2, 3])
def test_units_of_length_are_itks(runs, tmp_path, units):
    data = runs.nifti(runs.scan((4, 3, 2)), spacing=(2, 3, 4), qform=(1,) + (0,) * 6, units=units)
    np.testing.assert_allclose(read(data)[1], by_itk(tmp_path, data).spacing_mm, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3, 2, 1, 2)])
def test_channels_are_the_fourth_or_fifth_axis(runs, shape):
    values = np.arange(48, dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(read_two(runs.nifti(values)), values.reshape(4, 3, 2, 2))


def turned(code):
    """Twelve numbers of an sform: axes along `code`, a little oblique, another spacing on each."""
    matrix = np.zeros((3, 4))
    for axis, letter in enumerate(code):
        world = "RLAPSI".index(letter) // 2
        matrix[world, axis] = (1 if letter in "RAS" else -1) * (1.0, 1.2, 1.7)[axis]
    turn = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])
    return (turn @ matrix).ravel().tolist()


@pytest.mark.parametrize("code", AXIS_CODES)
def test_orientation_is_that_of_python(runs, code):
    image = runs.scan((4, 5, 3))
    for big in "<>":
        there, back, permutation = turn_to_pir(runs.nifti(image, order=big, sform=turned(code)))
        affine = np.eye(4)
        affine[:3] = np.reshape(turned(code), (3, 4))
        expected = axis_order(axis_code(affine), "PIR")
        np.testing.assert_array_equal(there, expected.apply(image))
        np.testing.assert_array_equal(back, image[..., 0])
        assert tuple(permutation.numpy()) == expected.permutation


@pytest.mark.parametrize("quaternion", list(itertools.product([0, 0.6], [0, -0.5], [0, 0.45], [-1, 1])))
def test_qform_is_read_as_by_itk(runs, tmp_path, quaternion):
    *bcd, qfac = quaternion

    data = runs.nifti(runs.scan((4, 5, 3)), spacing=(1, 2, 3), qform=(qfac, *bcd, 5, 6, 7))
    volume = by_itk(tmp_path, data)
    expected = axis_order(axis_code(volume.affine), "PIR").apply(volume.image)
    np.testing.assert_array_equal(turn_to_pir(data)[0], expected)


@pytest.mark.parametrize(
    "codes", [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (4, 3), (3, 4), (-1, 2), (1, -1)]
)
def test_which_of_two_forms_counts_is_as_in_itk(runs, tmp_path, codes):
    """A qform that is LPS and an sform that is RAS: a scan that is read by the wrong one is turned by half a circle."""
    data = bytearray(runs.nifti(runs.scan((4, 5, 3)), qform=(1, 0, 0, 1, 5, 6, 7), sform=turned("RAS")))
    struct.pack_into("<2h", data, 252, *codes)
    volume = by_itk(tmp_path, data)
    assert axis_code(volume.affine) == ("RAS" if 1 == codes[1] or codes[0] < 1 else "LPS")
    expected = axis_order(axis_code(volume.affine), "PIR").apply(volume.image)
    np.testing.assert_array_equal(turn_to_pir(bytes(data))[0], expected)


@pytest.mark.parametrize("shear", [0.9e-4, 3e-4])
@pytest.mark.parametrize("sform", [None, [0.0] * 12, [np.nan] + [0.0] * 11])
def test_an_sform_that_is_no_grid_is_refused_as_by_itk(runs, tmp_path, shear, sform):
    data = runs.nifti(runs.scan((4, 5, 3)), sform=sform or [1, shear, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0])
    if sform is None and shear < 1e-4:
        np.testing.assert_array_equal(turn_to_pir(data)[1], by_itk(tmp_path, data).image[..., 0])
        return
    with pytest.raises(ValueError, match="orthonormal"):
        by_itk(tmp_path, data)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a sheared sform alone"):
        turn_to_pir(data)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_negative_voxel_size_without_orientation_is_read_as_by_python(runs, tmp_path, axis):
    spacing = [1.0, 1.5, 2.0]
    spacing[axis] *= -1
    data = runs.nifti(runs.scan((4, 5, 3)), spacing=spacing)
    volume = by_itk(tmp_path, data)
    assert not volume.has_orientation
    image, found = read(data)
    np.testing.assert_array_equal(image, volume.image)
    np.testing.assert_array_equal(found, volume.spacing_mm)
    np.testing.assert_array_equal(turn_to_pir(data)[0], volume.image)


def test_a_sheared_sform_gives_way_to_the_qform_or_is_refused(runs):
    image, qform = runs.scan((4, 5, 3)), (1, 0, 0, 1, 5, 6, 7)  # LPS
    sheared = [1, 0.1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    expected = turn_to_pir(runs.nifti(image, qform=qform))[0]
    assert np.any(expected != turn_to_pir(runs.nifti(image, sform=[1, 5e-5, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]))[0])
    np.testing.assert_array_equal(turn_to_pir(runs.nifti(image, qform=qform, sform=sheared))[0], expected)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a sheared sform alone"):
        turn_to_pir(runs.nifti(image, sform=sheared))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("form", ["sform", "qform", "both", "none"])
def test_mask_lies_on_the_scan_and_is_pythons(served, runs, tmp_path, order, form):
    module, predictor = served
    qform = (-1, 0.1, 0.2, 0.9, 11, -7, 3) if form in ("qform", "both") else None
    sform = [0, -1.2, 0, 4, 1, 0, 0, 5, 0, 0, 2.25, 6] if form in ("sform", "both") else None
    stored = runs.scan((19, 23, 11))[..., 0] * 10
    data = gzip.compress(runs.nifti(stored, 4, order, 0.1, 3, (1, 1.2, 2.25), qform, sform))
    (tmp_path / "mask.nii").write_bytes(module.functions["nifti"](data)["mask_bytes"].numpy())
    expected = predictor.mask(by_itk(tmp_path, data))
    image, mask = (sitk.ReadImage(str(tmp_path / name)) for name in ("scan.nii.gz", "mask.nii"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).transpose(2, 1, 0), expected)
    assert 0.02 < expected.mean() < 0.98
    for field in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(mask, field)() == getattr(image, field)()
    for key in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "pixdim[0]", "xyzt_units"):
        assert mask.GetMetaData(key) == image.GetMetaData(key)
    assert mask.GetPixelIDTypeAsString() == "8-bit unsigned integer"


def broken(place, layout, *values):
    def change(data):
        data = bytearray(data)
        struct.pack_into(layout, data, place, *values)
        return bytes(data)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"", "a header of 348 bytes"),
        (lambda d: d[:200], "a header of 348 bytes"),
        (lambda d: gzip.compress(d)[:40], "a header of 348 bytes"),
        (lambda d: gzip.compress(d)[:500], "truncated"),
        (lambda d: d[:-1], "truncated"),
        (lambda d: gzip.compress(np.random.default_rng(0).bytes(250_000)), "at most 200000 bytes of compressed file"),
        (broken(0, "<i", 540), "NIfTI-2"),
        (broken(344, "4s", b"ni1\0"), "voxels are in another file"),
        (broken(344, "4s", b"xyz\0"), "the magic of NIfTI-1"),
        (broken(40, "<h", 2), "3 to 5 axes"),
        (broken(40, "<h", -1), "3 to 5 axes"),
        (broken(42, "<3h", 32767, 32767, 32767), "1 to 64 voxels along each axis"),
        (broken(42, "<h", 0), "1 to 64 voxels along each axis"),
        (broken(42, "<h", -5), "1 to 64 voxels along each axis"),
        (broken(42, "<3h", 60, 60, 60), "at most 32768"),
        (broken(40, "<5h", 4, 6, 5, 4, 3), "1 image channels"),
        (broken(70, "<h", 128), r"uint8 \(2\)"),
        (broken(70, "<h", 32), r"uint8 \(2\)"),
        (broken(108, "<f", 0), "vox_offset"),
        (broken(108, "<f", np.nan), "vox_offset"),
        (broken(108, "<f", 1e30), "vox_offset"),
        (broken(76, "<4f", 1, 1, np.nan, 1), "voxel sizes above 0 mm"),
        (broken(76, "<4f", 1, 0, 1, 1), "voxel sizes above 0 mm"),
        (lambda d: broken(252, "<2h", 1, 0)(broken(84, "<f", -1)(d)), "above 0 beside a qform or sform"),
        (lambda d: broken(252, "<2h", 0, 2)(broken(88, "<f", -1)(d)), "above 0 beside a qform or sform"),
        (broken(112, "<f", 1e38), "finite values"),
        (broken(352, "<f", np.nan), "finite values"),
    ],
)
def test_a_bad_file_is_refused_with_a_text(served, runs, change, message):
    data = runs.nifti(runs.scan((6, 5, 4)))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served[0].functions["nifti"](change(data))


@settings(max_examples=60)
@given(data=st.data())
def test_fuzz_ends_in_a_mask_or_an_error(served, runs, data):
    order = data.draw(st.sampled_from("<>"))
    code = data.draw(st.sampled_from([2, 4, 16, 64]))
    file = bytearray(runs.nifti(runs.scan((6, 5, 4))[..., 0], code, order, 2, 1))
    for _ in range(data.draw(st.integers(0, 4))):
        file[data.draw(st.integers(0, len(file) - 1) | st.integers(40, 130))] = data.draw(st.integers(0, 255))
    file = bytes(file)
    if data.draw(st.booleans()):
        packed = bytearray(gzip.compress(file, mtime=0))
        if data.draw(st.booleans()):
            packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        file = bytes(packed)
    if data.draw(st.booleans()):
        file = file[: data.draw(st.integers(0, len(file)))]
    try:
        mask = served[0].functions["nifti"](file)["mask_bytes"].numpy()
    except tf.errors.OpError:
        return
    assert mask[344:348] == b"n+1\0"
    assert set(mask[352:]) <= {0, 1}


def test_a_file_that_unpacks_a_thousandfold_is_stopped_by_its_header(served, runs):
    bomb = gzip.compress(runs.nifti(np.zeros((6, 5, 4), np.float32)) + bytes(60_000_000))
    assert len(bomb) < LIMITS.compressed_bytes
    huge = gzip.compress(broken(42, "<3h", 3000, 3000, 3000)(runs.nifti(np.zeros((6, 5, 4), np.float32))))
    with pytest.raises(tf.errors.InvalidArgumentError, match="1 to 64 voxels"):
        served[0].functions["nifti"](huge)
    # What follows the voxels is no part of the scan.
    assert len(served[0].functions["nifti"](bomb)["mask_bytes"].numpy()) == 352 + 120
