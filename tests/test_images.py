import gzip
import os
import pathlib
import resource
import struct

import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk

from tf_autoctx.data import images, libraries
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


def test_a_volume_is_written_as_it_is_where_that_is_wanted(tmp_path):
    zeros = sitk.Image([50, 50, 50], sitk.sitkUInt8)
    for name, compressed in (("a.nrrd", False), ("b.mha", False), ("c.nii", True)):
        images.write(tmp_path / name, zeros, compressed)
        assert (tmp_path / name).stat().st_size > 50**3


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.0, 0.0),
        (1.0, 1.0),
        (0.3, 1229 / 4096),  # 1228.8: steps of 2^-12 from 1/4 to 1/2
        (0.7, 1434 / 2048),  # 1433.6
        (0.99999, 1.0),
        (3e-5, 2013 / 2**26),  # 2013.3: as many digits of small values
        (1e-40, 1e-40),  # less than a float32 with all its digits
        (0.49999, 2047 / 4096),  # stays below a half
        (0.5, 0.5),
        (np.nextafter(np.float32(0.5), np.float32(1)), 1025 / 2048),  # stays above a half
    ],
)
def test_probabilities_keep_ten_bits_of_their_mantissa(value, expected):
    array = np.full((2, 3), value, np.float32)
    rounded = images.rounded(array)
    assert rounded.dtype == np.float32 and rounded.shape == (2, 3)
    np.testing.assert_allclose(rounded, expected, rtol=1e-6, atol=1e-38)
    assert array[0, 0] == np.float32(value)


def test_rounded_probabilities_compress_and_are_off_by_a_2000th(tmp_path):
    probability = np.random.default_rng(0).uniform(0, 1, (30, 30, 30)).astype(np.float32)
    rounded, sizes = images.rounded(probability[..., ::-1])[..., ::-1], []
    # By twice as much beside a half.
    np.testing.assert_allclose(rounded, probability, rtol=1 / 1023)
    away = (rounded != 1025 / 2048) & (rounded != 2047 / 4096)
    np.testing.assert_allclose(rounded[away], probability[away], rtol=1 / 2047)
    np.testing.assert_array_equal(np.sign(rounded - 0.5), np.sign(probability - 0.5))
    for voxels in (probability, rounded):
        images.write(tmp_path / "a.nii.gz", sitk.GetImageFromArray(voxels))
        sizes.append((tmp_path / "a.nii.gz").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


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


TEXT = {
    "a.nrrd": "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 6 5\nencoding: raw\n{}\n",
    "a.mha": "ObjectType = Image\nNDims = 2\nBinaryData = True\n{}DimSize = 6 5\n"
    "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n",
}


@pytest.mark.parametrize(
    "name, line, directed",
    [
        ("a.nrrd", "space dimension: 2\nspace directions: (1,0) (0,1)\n", True),
        ("a.nrrd", "spacings: 1 1\n", False),
        ("a.mha", "TransformMatrix = 1 0 0 1\n", True),
        ("a.mha", "ElementSpacing = 1 1\n", False),
    ],
)
def test_a_header_states_a_direction_or_none(tmp_path, name, line, directed):
    (tmp_path / name).write_bytes(TEXT[name].format(line).encode() + bytes(range(30)))
    assert images.read_2d(tmp_path / name).directed is directed


def unitless(path, direction, codes=(1, 1)):
    """A 2D NIfTI file without a unit, of these codes of qform and sform."""
    image = sitk.GetImageFromArray(picture())
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    raw = bytearray(path.read_bytes())
    raw[123] = 0
    struct.pack_into("<2h", raw, 252, *codes)
    path.write_bytes(raw)
    return images.read_2d(path)


def test_directions_that_both_files_state_agree_without_mm(tmp_path):
    image = unitless(tmp_path / "i.nii", (-1, 0, 0, -1))
    images.require_same_grid(unitless(tmp_path / "a.nii", (-1, 0, 0, -1)), image)
    images.require_same_grid(unitless(tmp_path / "b.nii", (1, 0, 0, 1), codes=(0, 0)), image)
    sitk.WriteImage(sitk.GetImageFromArray(picture()), str(tmp_path / "c.png"))
    images.require_same_grid(images.read_2d(tmp_path / "c.png"), image)
    turned = unitless(tmp_path / "d.nii", (1, 0, 0, 1))
    assert turned.millimetres is image.millimetres is None
    with pytest.raises(
        UserError,
        match=r"d.nii: direction \(1.0, 0.0, 0.0, 1.0\) .* match \(-1.0, 0.0, 0.0, -1.0\) of",
    ):
        images.require_same_grid(turned, image)


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


def immense(path):
    """Float64 holds what float32 does not."""
    voxels = np.zeros((2, 3, 4))
    voxels[0, 0, 0] = 1e39
    sitk.WriteImage(sitk.GetImageFromArray(voxels), path)


def complex_voxels(path):
    sitk.WriteImage(sitk.Image([4, 3, 2], sitk.sitkComplexFloat32), path)


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
        ("a.nrrd", not_finite, "3 of 24 voxels are NaN, infinite or beyond 3.4e.38; expected"),
        ("a.nii", complex_voxels, "has complex voxels; expected real numbers, save the magnitude"),
        ("a.nrrd", complex_voxels, "has complex voxels; expected real numbers"),
        ("a.nii.gz", immense, "1 of 24 voxels are NaN, infinite or beyond 3.4e.38; expected"),
        ("a.mha", immense, "1 of 24 voxels are NaN, infinite or beyond 3.4e.38; expected"),
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


# What headers say


def nifti_1(path, **fields):
    """A NIfTI-1 file of 6 x 5 x 4 voxels of 0.5 x 0.75 x 2 mm, of a changed header."""
    image = sitk.GetImageFromArray(np.arange(120, dtype=np.float32).reshape(4, 5, 6))
    image.SetSpacing((0.5, 0.75, 2.0))
    sitk.WriteImage(image, str(path))
    raw = bytearray(path.read_bytes())
    places = {
        "units": (123, "B"),
        "pixdim": (80, "3f"),
        "codes": (252, "2h"),
        "sform": (280, "12f"),
    }
    for name, values in fields.items():
        at, form = places[name]
        struct.pack_into(f"<{form}", raw, at, *values)
    path.write_bytes(raw)


def matrix(*changes, scale=1.0):
    """Of an sform: that of `nifti_1`, with ((row, column), value) changed."""
    rows = np.diag([-0.5, -0.75, 2.0, 1])[:3] * scale
    for at, value in changes:
        rows[at] = value
    return rows.ravel()


SHEARED = matrix(((0, 1), 0.3 * 0.75))

HEADERS = {
    "mm": ({}, (2.0, 0.75, 0.5)),
    "mm and seconds": ({"units": [10]}, (2.0, 0.75, 0.5)),
    "m": ({"units": [1]}, (2000.0, 750.0, 500.0)),
    "um": ({"units": [3]}, (0.002, 0.00075, 0.0005)),
    "no unit": ({"units": [0]}, (2.0, 0.75, 0.5)),
    "unit of no length": ({"units": [8]}, (2.0, 0.75, 0.5)),
    "unknown unit": ({"units": [5]}, "the spacing is unknown: the unit of length is 5"),
    "0 mm": ({"pixdim": [0.5, 0.75, 0]}, r"the spacing is unknown: pixdim is \(0.5, 0.75, 0\)"),
    "all 0 mm": ({"pixdim": [0, 0, 0], "codes": [0, 0]}, "the spacing is unknown: pixdim"),
    "negative": ({"pixdim": [0.5, -0.75, 2]}, r"the spacing is unknown: pixdim is \(0.5, -0.75"),
    "NaN": ({"pixdim": [0.5, np.nan, 2]}, r"the spacing is unknown: pixdim is \(0.5, nan"),
    "contradiction": ({"pixdim": [1, 1, 1]}, r".*pixdim is \(1, 1, 1\), but the sform's axes are"),
    "NaN matrix": ({"sform": [np.nan] * 12}, "the sform is not finite"),
    "sheared by 1.4e-4": (
        {"codes": [0, 1], "sform": matrix(((0, 1), 1.4e-4 * 0.75))},
        (2.0, 0.75, 0.5),
    ),
    "sheared by 9e-4": (
        {"codes": [0, 1], "sform": matrix(((0, 1), 9e-4 * 0.75))},
        (2.0, 0.75, 0.5),
    ),
    "sheared by 2e-3": (
        {"codes": [0, 1], "sform": matrix(((0, 1), 2e-3 * 0.75))},
        "the axes are sheared; expected axes at right angles",
    ),
}


@pytest.mark.parametrize("permissive", [None, "0", "1"])
@pytest.mark.parametrize("fields, expected", HEADERS.values(), ids=HEADERS)
def test_spacing_is_known_where_a_nifti_header_states_it(
    tmp_path, monkeypatch, fields, expected, permissive
):
    if permissive is not None:
        monkeypatch.setenv("ITK_NIFTI_SFORM_PERMISSIVE", permissive)
    nifti_1(tmp_path / "a.nii", **fields)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=f"a.nii: {expected}"):
            images.read(tmp_path / "a.nii")
    else:
        image = images.read(tmp_path / "a.nii")
        assert image.millimetres == pytest.approx(expected, rel=1e-6)
        assert image.orientation == "LPS"
    assert os.environ.get("ITK_NIFTI_SFORM_PERMISSIVE") == permissive


@pytest.mark.parametrize(
    "fields, told",
    [
        ({}, ""),
        ({"codes": [0, 0]}, "states no orientation (qform and sform codes of 0)"),
        ({"sform": matrix(((0, 0), 0.5))}, "the sform says RPS, the qform LPS; the sform is taken"),
        ({"sform": matrix(((0, 1), 0.05))}, "the sform is sheared; the qform is taken"),
    ],
)
def test_a_doubtful_geometry_is_told_once(tmp_path, caplog, fields, told):
    nifti_1(tmp_path / "a.nii", **fields)
    for _ in range(2):
        images.read(tmp_path / "a.nii")
    assert caplog.text.count(told or "a.nii") == bool(told)


def nifti_2(old, order="<"):
    """NIfTI-2 of a NIfTI-1 file, field by field (nifti2.h)."""
    new = bytearray(544)
    struct.pack_into(f"{order}i", new, 0, 540)
    new[4:12] = b"n+2\0\r\n\x1a\n"
    for form, to, at in (
        ("h", "h", (70, 12)),
        ("h", "h", (72, 14)),
        ("8h", "8q", (40, 16)),
        ("8f", "8d", (76, 104)),
        ("2f", "2d", (112, 176)),
        ("6f", "6d", (256, 352)),
        ("12f", "12d", (280, 400)),
        ("2h", "2i", (252, 344)),
        ("B", "i", (123, 500)),
    ):
        struct.pack_into(order + to, new, at[1], *struct.unpack_from(f"<{form}", old, at[0]))
    struct.pack_into(f"{order}q", new, 168, 544)
    voxels = np.frombuffer(old[352:], "<f4")
    return bytes(new) + voxels.astype(f"{order}f4").tobytes()


@pytest.mark.parametrize(
    "name, change",
    [
        ("a.nii", gzip.compress),
        ("a.nii.gz", bytes),
        ("a.nii", nifti_2),
        ("a.nii.gz", lambda raw: gzip.compress(nifti_2(raw))),
        ("a.nii", lambda raw: nifti_2(raw, ">")),
    ],
)
def test_nifti_is_read_whatever_its_version_and_packing(tmp_path, name, change):
    nifti_1(tmp_path / "old.nii")
    (tmp_path / name).write_bytes(change((tmp_path / "old.nii").read_bytes()))
    old, new = images.read(tmp_path / "old.nii"), images.read(tmp_path / name)
    np.testing.assert_array_equal(new.array, old.array)
    assert new.grid == old.grid and new.millimetres == (2.0, 0.75, 0.5)


def test_nan_in_nifti_2_is_refused(tmp_path):
    nifti_1(tmp_path / "old.nii")
    raw = bytearray(nifti_2((tmp_path / "old.nii").read_bytes()))
    struct.pack_into("<f", raw, 544 + 40, np.nan)
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(UserError, match=r"a.nii: 1 of 120 voxels are NaN or infinite"):
        images.read(tmp_path / "a.nii")


NRRD = {
    "directions of a patient": (
        "space: left-posterior-superior\nspace directions: (0.5,0,0) (0,0.75,0) (0,0,2)\n",
        (2.0, 0.75, 0.5),
    ),
    "mm": (
        'space: RAS\nspace directions: (0.5,0,0) (0,0.75,0) (0,0,2)\nspace units: "mm" "mm" "mm"\n',
        (2.0, 0.75, 0.5),
    ),
    "cm": (
        "space: left-posterior-superior\nspace directions: (0.05,0,0) (0,0.075,0) (0,0,0.2)\n"
        'space units: "cm" "cm" "cm"\nspace origin: (1,2,3)\n',
        (2.0, 0.75, 0.5),
    ),
    "um": (
        "space: left-posterior-superior\nspace directions: (500,0,0) (0,750,0) (0,0,2000)\n"
        'space units: "microns" "microns" "microns"\n',
        (2.0, 0.75, 0.5),
    ),
    "pixels": (
        "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
        'space units: "pixels" "pixels" "pixels"\n',
        'the units of length are "pixels"',
    ),
    "mixed": (
        "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
        'space units: "mm" "mm" "s"\n',
        "the units of length are",
    ),
    "spacings": ("spacings: 0.5 0.75 2\n", (2.0, 0.75, 0.5)),
    "spacings in um": ('spacings: 500 750 2000\nunits: "um" "um" "um"\n', (2.0, 0.75, 0.5)),
    "NaN": ("spacings: 0.5 0.75 nan\n", r"the axes are \(0.5, 0.75\) long"),
    "0": ("spacings: 0.5 0.75 0\n", r"the axes are \(0.5, 0.75, 0\) long"),
    "none": ("", "neither `space directions` nor `spacings`"),
}


@pytest.mark.parametrize("lines, expected", NRRD.values(), ids=NRRD)
def test_spacing_is_known_where_an_nrrd_header_states_it(tmp_path, lines, expected):
    head = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 6 5 4\nencoding: raw\n{lines}\n"
    (tmp_path / "a.nrrd").write_bytes(head.encode() + bytes(range(120)))
    if isinstance(expected, str):
        with pytest.raises(UserError, match=f"a.nrrd: the spacing is unknown: .*({expected})"):
            images.read(tmp_path / "a.nrrd")
    else:
        image = images.read(tmp_path / "a.nrrd")
        assert image.millimetres == pytest.approx(expected)
        if "origin" in lines:
            assert image.grid.origin == pytest.approx((10, 20, 30))


META = {
    "spacing": ("ElementSpacing = 0.5 0.75 2\n", (2.0, 0.75, 0.5)),
    "size": ("ElementSize = 0.5 0.75 2\n", (2.0, 0.75, 0.5)),
    "cm": ("ElementSpacing = 0.05 0.075 0.2\nDistanceUnits = cm\n", (2.0, 0.75, 0.5)),
    "none": ("", "it has no ElementSpacing"),
    "0": ("ElementSpacing = 0.5 0.75 0\n", r"ElementSpacing is \(0.5, 0.75, 0\)"),
    "unknown unit": ("ElementSpacing = 1 1 1\nDistanceUnits = ?\n", r"DistanceUnits is \?"),
}


@pytest.mark.parametrize("lines, expected", META.values(), ids=META)
def test_spacing_is_known_where_a_metaimage_header_states_it(tmp_path, lines, expected):
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    head += f"CompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n{lines}"
    head += "DimSize = 6 5 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(head.encode() + bytes(range(120)))
    if isinstance(expected, str):
        with pytest.raises(UserError, match=f"a.mha: the spacing is unknown: {expected}"):
            images.read(tmp_path / "a.mha")
    else:
        assert images.read(tmp_path / "a.mha").millimetres == pytest.approx(expected)


def test_a_stack_of_pictures_is_no_volume(tmp_path):
    sitk.WriteImage(sitk.Image([6, 5, 4], sitk.sitkUInt8), str(tmp_path / "a.tif"))
    with pytest.raises(UserError, match=r"a.tif: the spacing is unknown: the format has no mm"):
        images.read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "suffix, known", [(".nii.gz", True), (".mha", True), (".nrrd", False), (".png", False)]
)
def test_2d_images_have_mm_where_the_header_names_them(tmp_path, suffix, known):
    image = sitk.GetImageFromArray(picture())
    image.SetSpacing((0.25, 0.5))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    read = images.read_2d(tmp_path / f"a{suffix}")
    assert read.millimetres == ((0.5, 0.25) if known else None)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_the_result_of_a_picture_without_mm_has_none(tmp_path, suffix):
    sitk.WriteImage(sitk.GetImageFromArray(picture()), str(tmp_path / "a.png"))
    image = images.read_2d(tmp_path / "a.png")
    images.write(tmp_path / f"b{suffix}", image.like(image.array / 2))
    result = images.read_2d(tmp_path / f"b{suffix}")
    assert result.millimetres is None
    np.testing.assert_array_equal(result.array, image.array / 2)


def test_the_result_of_one_slice_is_a_volume_of_one(tmp_path):
    image = sitk.GetImageFromArray(picture()[None])
    image.SetSpacing((0.25, 0.5, 3))
    image.SetOrigin((1, 2, 3))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))  # sagittal
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    read = images.read_2d(tmp_path / "a.nii.gz")
    assert read.array.shape == (6, 8) and read.millimetres == (0.5, 0.25)
    images.write(tmp_path / "b.nii.gz", read.like(read.array))
    before, after = (sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in "ab")
    assert images.Grid.of(before) == images.Grid.of(after)
    np.testing.assert_array_equal(stored(before), stored(after))
    images.write(tmp_path / "b.png", read.like(read.array))
    np.testing.assert_array_equal(images.read_2d(tmp_path / "b.png").array, read.array)


def test_what_a_library_says_of_a_damaged_picture_is_an_error(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(smooth), str(tmp_path / "a.jpg"))
    raw = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(raw[: len(raw) // 3] + b"\xff\xd9")
    with pytest.raises(UserError, match=r"a.jpg: .*; expected"):
        images.read_2d(tmp_path / "a.jpg")


def test_harmless_words_of_a_library_are_warnings(tmp_path, caplog, capfd):
    def says(line):
        with libraries.heard(tmp_path / "a.tif"):
            os.write(2, f"{line}\n".encode())

    says("TIFFReadDirectory: Warning, Unknown field with tag 50838")
    assert "a.tif" in caplog.text and "Unknown field with tag 50838" in caplog.text
    caplog.clear()
    says("I0000 00:00:1795717036.012272 port.cc:153] of another thread")
    assert not caplog.text and "of another thread" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"a.tif: .*Read error at scanline 3"):
        says("TIFFReadScanline: Read error at scanline 3")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_a_picture_that_is_stored_turned_is_refused(tmp_path, name):
    picture = PIL.Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10))
    for turned in (1, 6):
        exif = picture.getexif()
        exif[0x0112] = turned
        picture.save(tmp_path / name, exif=exif)
        if turned == 1:
            assert images.read_2d(tmp_path / name).array.shape == (8, 10)
    with pytest.raises(UserError, match=rf"{name}: is stored turned \(orientation 6 of EXIF\)"):
        images.read_2d(tmp_path / name)


def test_an_animation_is_refused(tmp_path):
    frames = [PIL.Image.fromarray(np.full((8, 10), 50 * k, np.uint8)) for k in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"a\.png: is an animation; expected one picture"):
        images.read_2d(tmp_path / "a.png")
