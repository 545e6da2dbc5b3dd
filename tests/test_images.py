import gzip
import os
import pathlib
import resource
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from tf_autoctx.data import images
from tf_autoctx.errors import UserError

COS, SIN = np.cos(0.3), np.sin(0.3)
OBLIQUE = (COS, -SIN, 0.0, SIN, COS, 0.0, 0.0, 0.0, 1.0)


def volume(shape=(4, 5, 6), dtype=np.int16):
    """A volume of distinct values with anisotropic voxels, a far origin and turned axes."""
    image = sitk.GetImageFromArray(np.arange(np.prod(shape)).reshape(shape).astype(dtype))
    image.SetSpacing((0.5, 0.75, 2.0))
    image.SetOrigin((-120.5, 33.25, 871.125))
    image.SetDirection(OBLIQUE)
    return image


def write_series(folder, positions=(10.0, 12.0, 14.0), uid="1.2.3.4"):
    """DICOM slices of 5 x 6 pixels, 0.75 x 0.5 mm; the slice at z mm has the value 100 z."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, z in enumerate(positions):
        piece = sitk.JoinSeries([sitk.Image([6, 5], sitk.sitkInt16) + int(100 * z)])
        piece.SetSpacing((0.5, 0.75, 1))
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{number + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(number),
            "0020|0032": f"-7\\3\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(
            str(folder / f"{uid}_{9 - number}.dcm")
        )  # the names run against the positions
        writer.Execute(piece)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_written_volume_keeps_voxels_and_geometry(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    images.write(path, volume())
    image = images.read(path)
    assert image.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(images.array(image), images.array(volume()))
    assert images.spacing(image) == pytest.approx((2.0, 0.75, 0.5))
    assert image.GetOrigin() == pytest.approx((-120.5, 33.25, 871.125))
    assert image.GetDirection() == pytest.approx(OBLIQUE, abs=1e-6)
    images.require_same_grid(path, image, "in memory", volume())
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_written_volume_is_compressed(tmp_path, suffix):
    images.write(tmp_path / f"a{suffix}", sitk.Image([50, 50, 50], sitk.sitkUInt8))
    assert (tmp_path / f"a{suffix}").stat().st_size < 50**3 / 10


def test_a_grey_png_has_two_dimensions(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    images.write(tmp_path / "a.png", sitk.GetImageFromArray(pixels))
    np.testing.assert_array_equal(images.array(images.read(tmp_path / "a.png")), pixels)


# Two dimensions.


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (6, 8)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".nii.gz", ".mha", ".dcm"])
def test_grey_levels_of_any_format_are_the_same(tmp_path, suffix):
    grey = picture()
    image = sitk.GetImageFromArray(
        grey[None] if suffix in (".dcm", ".nii.gz") else grey
    )  # a volume of one slice
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    answer = images.read_2d(tmp_path / f"a{suffix}", grey_levels=True)
    assert answer.GetDimension() == 2
    np.testing.assert_array_equal(images.array(answer), grey)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".dcm"])
def test_colour_becomes_its_luminance(tmp_path, suffix, alpha):
    if alpha and suffix == ".dcm":
        return
    colour = np.stack([picture(seed) for seed in range(3 + alpha)], axis=-1)
    colour = colour[None] if suffix == ".dcm" else colour
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(tmp_path / f"a{suffix}"))
    expected = np.rint(colour.reshape(6, 8, -1)[..., :3] @ np.array([0.299, 0.587, 0.114]))
    answer = images.read_2d(tmp_path / f"a{suffix}")
    assert answer.GetPixelID() == sitk.sitkUInt8
    assert np.abs(images.array(answer).astype(float) - expected).max() <= 1
    with pytest.raises(UserError, match="expected one \\(grey, not colour\\)"):
        images.read(tmp_path / f"a{suffix}")


def test_a_jpeg_is_nearly_its_picture(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(smooth), str(tmp_path / "a.jpg"))
    answer = images.read_2d(tmp_path / "a.jpg", grey_levels=True)
    assert np.abs(images.array(answer).astype(float) - smooth).max() <= 4
    assert images.millimetres(tmp_path / "a.jpg", answer) is None


@pytest.mark.parametrize(
    "values, expected",
    [
        ((0, 10, 255), (0, 10, 255)),  # grey levels already
        ((10, 20, 199), (10, 20, 199)),
        ((0, 1000, 4000), (0, 63.75, 255)),
        ((-100, 0, 100), (0, 127.5, 255)),
        ((0.0, 0.5, 1.0), (0, 127.5, 255)),
    ],
)
def test_other_pixels_are_taken_to_grey_levels(tmp_path, values, expected):
    sitk.WriteImage(
        sitk.GetImageFromArray(np.array([values], np.float32)), str(tmp_path / "a.nii.gz")
    )
    np.testing.assert_allclose(images.array(images.read_2d(tmp_path / "a.nii.gz"))[0], values)
    np.testing.assert_allclose(
        images.array(images.read_2d(tmp_path / "a.nii.gz", grey_levels=True))[0], expected
    )


def test_a_volume_is_no_picture(tmp_path):
    sitk.WriteImage(volume(), str(tmp_path / "a.nii.gz"))
    with pytest.raises(UserError, match="has 3 dimensions"):
        images.read_2d(tmp_path / "a.nii.gz")


def test_stills_of_one_series_are_images_of_their_own_where_wanted(tmp_path):
    write_series(tmp_path)
    assert len(images.find(tmp_path)) == 1 and len(images.find(tmp_path, series=False)) == 3


def test_pixel_formats_match_by_size_alone(tmp_path):
    image, label = (sitk.GetImageFromArray(picture()) for _ in range(2))
    image.SetSpacing((0.26, 0.26))  # the dots per inch of a JPEG
    images.require_same_grid("a.png", label, "a.jpg", image)
    with pytest.raises(UserError, match="spacing"):
        images.require_same_grid("a.nii", label, "b.nii", image)
    with pytest.raises(UserError, match="size"):
        images.require_same_grid("a.png", label[:5], "a.jpg", image)


def test_a_dicom_series_is_one_volume_in_order_of_position(tmp_path):
    write_series(tmp_path / "scan")
    image = images.read(tmp_path / "scan")
    assert images.array(image)[:, 0, 0].tolist() == [1000, 1200, 1400]
    assert images.spacing(image) == pytest.approx((2.0, 0.75, 0.5))
    assert image.GetOrigin() == pytest.approx((-7, 3, 10))
    assert images.find(tmp_path / "scan") == {"scan": str(tmp_path / "scan")}


def test_a_dicom_series_without_one_of_its_slices_is_refused(tmp_path):
    write_series(tmp_path / "scan", positions=(10, 12, 16, 18))
    with pytest.raises(UserError, match="scan: slices 2 to 4 mm apart; expected even steps"):
        images.read(tmp_path / "scan")


def test_rounded_slice_positions_are_accepted(tmp_path):
    write_series(tmp_path / "scan", positions=(10, 11.99, 14, 16.01))
    assert images.read(tmp_path / "scan").GetSize() == (6, 5, 4)


def test_a_folder_of_two_series_or_of_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path.name}: holds 0 DICOM series; expected one"):
        images.read(tmp_path)
    write_series(tmp_path, uid="1.2.3.4")
    write_series(tmp_path, uid="1.2.3.5")
    with pytest.raises(UserError, match=f"{tmp_path.name}: holds 2 DICOM series; expected one"):
        images.read(tmp_path)


def not_finite(path):
    voxels = np.zeros((2, 3, 4), np.float32)
    voxels[0, 0, :3] = np.nan, np.inf, -np.inf
    sitk.WriteImage(sitk.GetImageFromArray(voxels), path)


def sheared(path):
    sitk.WriteImage(volume(), path)
    header = bytearray(gzip.decompress(pathlib.Path(path).read_bytes()))
    struct.pack_into("<2h", header, 252, 0, 1)  # qform_code, sform_code: use the matrix alone
    struct.pack_into("<12f", header, 280, 1, 0.5, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    pathlib.Path(path).write_bytes(gzip.compress(header))


def no_voxels(path):
    header = "NDims = 3\nDimSize = 0 3 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    pathlib.Path(path).write_text(header)


@pytest.mark.parametrize(
    "name, make, sentence",
    [
        ("a.nii.gz", lambda path: None, "No such file or directory; expected an image file"),
        (
            "a.nii.gz",
            lambda path: pathlib.Path(path).write_text("hello"),
            "not a readable image; expected an intact",
        ),
        (
            "a.png",
            lambda path: pathlib.Path(path).write_bytes(b""),
            "not a readable image; expected an intact",
        ),
        ("a.nii.gz", sheared, "the axes are sheared; expected axes at right angles"),
        ("a.mha", no_voxels, r"has size \(0, 3, 4\), no voxels; expected at least one"),
        ("a.nii.gz", not_finite, "3 of 24 voxels are NaN or infinite; expected finite numbers"),
        ("a.nii", not_finite, "3 of 24 voxels are NaN or infinite; expected finite numbers"),
        ("a.nrrd", not_finite, "3 of 24 voxels are NaN or infinite; expected finite numbers"),
        (
            "a.nii.gz",
            lambda path: sitk.WriteImage(sitk.JoinSeries([volume(), volume()]), path),
            r"has 4 dimensions, size \(6, 5, 4, 2\); expected two or three",
        ),
        (
            "a.png",
            lambda path: sitk.WriteImage(sitk.Image([4, 3], sitk.sitkVectorUInt8, 3), path),
            "has 3 values per voxel .*; expected one",
        ),
    ],
)
def test_a_bad_file_is_named_in_one_sentence(tmp_path, capfd, name, make, sentence):
    make(str(tmp_path / name))
    with pytest.raises(UserError, match=rf"{name}: {sentence}") as error:
        images.read(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path)) and str(error.value).endswith(".")
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_file_that_was_cut_off_is_refused(tmp_path, capfd, suffix):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 1000, (10, 20, 30), np.int16)
    images.write(path, sitk.GetImageFromArray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(UserError, match=f"a{suffix}: .*; expected"):
        images.read(path)
    assert capfd.readouterr().err == ""


@pytest.fixture
def full_disk():
    """A file system that takes 20 kB per file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".tif"])
def test_a_write_that_runs_out_of_space_leaves_the_old_file_alone(tmp_path, full_disk, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("old")
    noise = np.random.default_rng(0).integers(0, 30000, (20, 30, 40), np.int16)
    with pytest.raises(
        UserError, match=rf"a{suffix}: could not be written whole .*; expected disk space"
    ):
        images.write(path, sitk.GetImageFromArray(noise))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("a.mhd", "cannot write this format; expected a name that ends in .*.mha"),
        ("a.jpg", "cannot write this format; expected a name that ends in .*.png"),
        (
            "a.png",
            "could not be written whole .3D, 16-bit signed integer; .*; expected .* a format that "
            "holds such",
        ),
        ("nowhere/a.nrrd", "cannot be written, there is no folder .*nowhere; create it"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, name, sentence):
    with pytest.raises(UserError, match=f"{name}: {sentence}"):
        images.write(tmp_path / name, volume())
    assert os.listdir(tmp_path) == []


def test_like_takes_the_grid_of_its_reference():
    mask = images.array(volume()) > 60
    image = images.like(mask, volume())
    assert image.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(images.array(image), mask)
    images.require_same_grid("mask", image, "image", volume())
    with pytest.raises(ValueError, match=r"\(5, 4, 6\), the reference image \(4, 5, 6\)"):
        images.like(mask.transpose(1, 0, 2), volume())


def test_voxels_may_have_several_values(tmp_path):
    values = np.random.default_rng(0).random((4, 5, 6, 3), np.float32)
    images.write(tmp_path / "a.nii.gz", images.like(values, volume()))
    image = images.read(tmp_path / "a.nii.gz", colour=True)
    np.testing.assert_array_equal(images.array(image), values)
    images.require_same_grid("values", image, "image", volume())
    with pytest.raises(ValueError, match=r"\(5, 4, 6, 3\), the reference image \(4, 5, 6\)"):
        images.like(values.transpose(1, 0, 2, 3), volume())


def test_find_sorts_by_name_and_passes_over_other_files(tmp_path):
    for name in ("b.nii.gz", "a.b.NRRD", "c.png", "notes.txt", "._c.png", ".partial-1-d.nii.gz"):
        (tmp_path / name).touch()
    (tmp_path / "folder.mha").mkdir()
    expected = {"a.b": "a.b.NRRD", "b": "b.nii.gz", "c": "c.png"}
    assert list(images.find(tmp_path).items()) == [
        (name, str(tmp_path / file)) for name, file in expected.items()
    ]


def test_find_says_what_is_wrong_with_a_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; expected a folder of images"):
        images.find(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=f"{tmp_path.name}: holds no image; expected files that end in .nii.gz"
    ):
        images.find(tmp_path)
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "a.nrrd").touch()
    with pytest.raises(
        UserError, match=r"a.nrrd: has the same name as .*a.nii.gz; expected one image of each name"
    ):
        images.find(tmp_path)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda image: image[:, :, 1:], r"size \(6, 5, 3\) voxels does not match \(6, 5, 4\)"),
        (lambda image: image[:, :, 0], r"size \(6, 5\) voxels does not match \(6, 5, 4\)"),
        (
            lambda image: image.SetSpacing((0.5, 0.75, 2.01)),
            r"spacing .*2.01\) mm does not match .* 2.0\)",
        ),
        (
            lambda image: image.SetOrigin((-120.5, 33.25, 871.2)),
            r"origin .*871.2\) mm does not match .*871.125\)",
        ),
        (
            lambda image: image.SetDirection(np.eye(3).ravel()),
            r"direction \(1.0, .* does not match \(0.9553, .*\)",
        ),
    ],
)
def test_a_label_on_another_grid_is_refused(change, sentence):
    label = volume()
    label = change(label) or label
    with pytest.raises(
        UserError, match=f"^l.nrrd: {sentence} of its image i.nrrd; resample the label or fix"
    ):
        images.require_same_grid("l.nrrd", label, "i.nrrd", volume())


def test_a_rounded_header_is_the_same_grid():
    label = volume()
    label.SetSpacing((0.5001, 0.75, 1.9999))
    label.SetOrigin((-120.49, 33.25, 871.13))
    label.SetDirection(np.round(OBLIQUE, 6))
    images.require_same_grid("l.nrrd", label, "i.nrrd", volume())
