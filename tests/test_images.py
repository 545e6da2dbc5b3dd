import gzip
import os
import pathlib
import resource
import struct

import numpy as np
import PIL.Image
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


def known(path, image):
    """The image of a file that tells its millimetres."""
    return images.Image.of(path, image, image.GetSpacing())


def stored(image):
    """The voxels of a SimpleITK image."""
    return sitk.GetArrayFromImage(image)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_written_volume_keeps_voxels_and_geometry(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    images.write(path, volume())
    image = images.read(path)
    assert image.image.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(image.array, stored(volume()))
    assert image.spacing == image.millimetres == pytest.approx((2.0, 0.75, 0.5))
    assert image.grid.origin == pytest.approx((-120.5, 33.25, 871.125))
    assert image.grid.direction == pytest.approx(OBLIQUE, abs=1e-6)
    images.require_same_grid(image, images.Image.of("in memory", volume(), (0.5, 0.75, 2.0)))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_written_volume_is_compressed(tmp_path, suffix):
    images.write(tmp_path / f"a{suffix}", sitk.Image([50, 50, 50], sitk.sitkUInt8))
    assert (tmp_path / f"a{suffix}").stat().st_size < 50**3 / 10


def test_a_grey_png_has_two_dimensions(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    images.write(tmp_path / "a.png", sitk.GetImageFromArray(pixels))
    np.testing.assert_array_equal(images.read(tmp_path / "a.png").array, pixels)


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
    assert answer.dimensions == 2 and answer.orientation is None
    np.testing.assert_array_equal(answer.array, grey)
    images.write(tmp_path / f"b{suffix.replace('dcm', 'png')}", answer.like(grey > 9))


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
    assert answer.image.GetPixelID() == sitk.sitkUInt8
    assert np.abs(answer.array.astype(float) - expected).max() <= 1
    with pytest.raises(UserError, match="expected one \\(grey, not colour\\)"):
        images.read(tmp_path / f"a{suffix}")


def test_a_jpeg_is_nearly_its_picture(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(smooth), str(tmp_path / "a.jpg"))
    answer = images.read_2d(tmp_path / "a.jpg", grey_levels=True)
    assert np.abs(answer.array.astype(float) - smooth).max() <= 4
    assert answer.millimetres is None and answer.spacing == (1, 1)


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
    np.testing.assert_allclose(images.read_2d(tmp_path / "a.nii.gz").array[0], values)
    np.testing.assert_allclose(
        images.read_2d(tmp_path / "a.nii.gz", grey_levels=True).array[0], expected
    )


def test_a_volume_is_no_picture(tmp_path):
    sitk.WriteImage(volume(), str(tmp_path / "a.nii.gz"))
    with pytest.raises(UserError, match="has 3 dimensions"):
        images.read_2d(tmp_path / "a.nii.gz")


def test_pixel_formats_match_by_size_alone():
    image, label = (sitk.GetImageFromArray(picture()) for _ in range(2))
    image.SetSpacing((0.26, 0.26))  # the dots per inch of a JPEG
    of = images.Image.of
    images.require_same_grid(of("a.png", label), of("a.jpg", image))
    with pytest.raises(UserError, match="spacing"):
        images.require_same_grid(of("a.nii", label, (1, 1)), of("b.nii", image, (0.26, 0.26)))
    with pytest.raises(UserError, match="size"):
        images.require_same_grid(of("a.png", label[:5]), of("a.jpg", image))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_with_transparency_is_grey(tmp_path, suffix, caplog):
    for name, alpha in (("opaque", np.full((6, 8), 255, np.uint8)), ("window", picture(1))):
        pixels = np.stack([picture(), alpha], axis=-1)
        PIL.Image.fromarray(pixels, "LA").save(tmp_path / f"{name}{suffix}")
        image = images.read_2d(tmp_path / f"{name}{suffix}", grey_levels=True)
        np.testing.assert_array_equal(image.array, picture())
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"{tmp_path / f'window{suffix}'}: its transparency is left out."]


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


def test_like_takes_the_grid_of_its_image():
    whole = images.Image.of("a.nrrd", volume(), (0.5, 0.75, 2.0))
    mask = stored(volume()) > 60
    image = whole.like(mask)
    assert image.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(stored(image), mask)
    assert images.Grid.of(image) == images.Grid.of(volume())
    with pytest.raises(ValueError, match=r"\(5, 4, 6\), the image \(4, 5, 6\)"):
        whole.like(mask.transpose(1, 0, 2))


def test_voxels_may_have_several_values(tmp_path):
    whole = images.Image.of("a.nrrd", volume(), (0.5, 0.75, 2.0))
    values = np.random.default_rng(0).random((4, 5, 6, 3), np.float32)
    images.write(tmp_path / "a.nii.gz", whole.like(values))
    image = images.read(tmp_path / "a.nii.gz", colour=True)
    np.testing.assert_array_equal(image.array, values)
    images.require_same_grid(image, whole)
    with pytest.raises(UserError, match="has 3 values per voxel"):
        images.read(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=r"\(5, 4, 6, 3\), the image \(4, 5, 6\)"):
        whole.like(values.transpose(1, 0, 2, 3))


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
        images.require_same_grid(known("l.nrrd", label), known("i.nrrd", volume()))


def test_a_rounded_header_is_the_same_grid():
    label = volume()
    label.SetSpacing((0.5001, 0.75, 1.9999))
    label.SetOrigin((-120.49, 33.25, 871.13))
    label.SetDirection(np.round(OBLIQUE, 6))
    images.require_same_grid(known("l.nrrd", label), known("i.nrrd", volume()))
