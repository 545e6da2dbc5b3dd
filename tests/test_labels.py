"""The one reader of labels: what is a label, and what it is taken for."""

import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
import tifffile

from tf_autoctx.data import labels
from tf_autoctx.errors import UserError


def write(path, voxels, vector=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.asarray(voxels), isVector=vector), str(path))
    return path


def volume(*values, dtype=np.uint8):
    """(3, 4, 5) zeros but for the first voxels."""
    voxels = np.zeros((3, 4, 5), dtype)
    voxels.flat[: len(values)] = values
    return voxels


def square(value=1, shape=(8, 10), dtype=np.uint8):
    voxels = np.zeros(shape, dtype)
    voxels[2:6, 3:8] = value
    return voxels


def read(path, dimensions=3, *arguments, **options):
    return labels.read(path, dimensions, *arguments, **options)[1]


def test_values_within_a_thousandth_are_whole(tmp_path):
    path = write(tmp_path / "a.nrrd", volume(0.99998, 2.0009, dtype=np.float32))
    label = read(path)
    assert label.dtype == np.uint8 and label.ravel()[:3].tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    "voxels, told",
    [
        (volume(0.4, dtype=np.float32), r"label values \[0.4\]; expected whole numbers, not prob"),
        (volume(1.002, dtype=np.float32), r"\[1.002\]; expected whole numbers"),
        (volume(*np.arange(20) / 20, dtype=np.float32), r"\[0.05, 0.1, 0.15, 0.2, 0.25, \.\.\.\]"),
        (volume(1, -1, dtype=np.int16), r"\[-1\]; expected values from 0"),
        (np.full((3, 4, 5), 7, np.uint8), r"has no background, its values are \[7\]; expected 0"),
        (volume(3e9, dtype=np.float64), "label value 3000000000; expected values of up to 65535"),
        (volume(10**9, dtype=np.int32), "label value 1000000000; expected values of up to 65535"),
    ],
)
def test_what_is_no_label_is_named(tmp_path, voxels, told):
    path = write(tmp_path / "a.nrrd", voxels)
    with pytest.raises(UserError, match=f"a.nrrd: .*{told}"):
        read(path)


def test_a_prediction_may_be_an_object_everywhere(tmp_path):
    path = write(tmp_path / "a.nrrd", np.ones((3, 4, 5), np.uint8))
    assert read(path, truth=False).all()


def test_large_values_are_kept(tmp_path):
    label = read(write(tmp_path / "a.nrrd", volume(65535, 14175, 2, dtype=np.int32)))
    assert label.ravel()[:4].tolist() == [65535, 14175, 2, 0]


@pytest.mark.parametrize(
    "value, known, expected",
    [
        (255, None, 1),
        (1, None, 1),
        (7, None, 7),
        (255, {0: "background", 1: "head"}, 1),
        (1, {1: "head"}, 1),
        (1, {255: "head"}, 255),
        (255, {255: "head"}, 255),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.nrrd"])
def test_masks_are_0_and_1_or_0_and_255(tmp_path, name, value, known, expected):
    path = write(tmp_path / name, square(value))
    assert np.array_equal(read(path, 2, known), square(expected))


def test_a_value_that_the_user_names_stays(tmp_path):
    path = write(tmp_path / "a.png", square(255))
    assert read(path, 2, foreground=[255]).max() == 255


@pytest.mark.parametrize(
    "value, known, told",
    [
        (7, {1: "head"}, r"\[7\]; expected one of \[0, 1\]"),
        (255, {1: "left", 2: "right"}, r"\[255\]; expected one of \[0, 1, 2\]"),
        (1, {2: "liver"}, r"\[1\]; expected one of \[0, 2\]"),
    ],
)
def test_unknown_values_are_refused(tmp_path, value, known, told):
    with pytest.raises(UserError, match=told):
        read(write(tmp_path / "a.png", square(value)), 2, known)


def test_several_values_of_a_picture_need_names(tmp_path):
    pixels = square()
    pixels[0, 0] = 17  # the edge of a mask that was smoothed
    path = write(tmp_path / "a.png", pixels)
    with pytest.raises(UserError, match=r"a.png: .*\[0, 1, 17\]; expected two, those of a mask"):
        read(path, 2)
    assert read(path, 2, {1: "head", 17: "cord"}).max() == 17
    assert read(path, 2, foreground=[1]).max() == 17
    assert read(write(tmp_path / "a.nrrd", pixels[None]), 3).max() == 17  # a volume


@pytest.mark.parametrize("colour", [(0, 255, 0), (128, 0, 0, 255), (255, 255, 255)])
def test_one_colour_is_the_object(tmp_path, colour):
    pixels = square()[..., None] * np.array(colour, np.uint8)
    path = write(tmp_path / "a.png", pixels, vector=True)
    assert np.array_equal(read(path, 2), square())


def test_a_colour_is_none_of_several_structures(tmp_path):
    """A palette image, as of PASCAL VOC, of class 2 alone."""
    picture = PIL.Image.fromarray(square(2)).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", 2, {0: "background", 1: "brain"}), square())
    for options in ({"known": {1: "skull", 2: "brain"}}, {"single": False}):
        with pytest.raises(
            UserError, match=r"a.png: has the colour \(0, 128, 0\), which may be any"
        ):
            read(tmp_path / "a.png", 2, **options)


def packed(pixels, bits):
    """Rows of pixels of so many bits each."""
    every = np.unpackbits(pixels[..., None], axis=-1)[..., 8 - bits :]
    return [row.tobytes() for row in np.packbits(every.reshape(len(pixels), -1), axis=-1)]


def png(path, pixels, bits):
    header = struct.pack(">2I5B", *pixels.shape[::-1], bits, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row for row in packed(pixels, bits)))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(data)


def tiff(path, pixels, bits):
    """One strip, behind its directory."""
    rows = b"".join(packed(pixels, bits))
    height, width = pixels.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 110, 278: height}
    entries = [struct.pack("<2HII", tag, 4, 1, value) for tag, value in tags.items()]
    entries.append(struct.pack("<2HII", 279, 4, 1, len(rows)))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    path.write_bytes(head + rows)


@pytest.mark.parametrize("write", [png, tiff])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_values_of_a_few_bits_are_not_stretched(tmp_path, write, bits):
    """libpng and libtiff take the largest value, such as 15, to 255."""
    pixels = np.zeros((8, 10), np.uint8)
    pixels.flat[: 2**bits] = range(2**bits)
    path = tmp_path / f"a.{write.__name__}"
    write(path, pixels, bits)
    assert np.array_equal(read(path, 2, foreground=[1]), pixels)


def test_what_is_transparent_is_background(tmp_path):
    pixels = np.full((8, 10, 4), (255, 0, 0, 0), np.uint8)
    pixels[2:6, 3:8, 3] = 255
    assert np.array_equal(read(write(tmp_path / "a.png", pixels, vector=True), 2), square())
    pixels[1, 1, 3] = 100
    with pytest.raises(UserError, match="transparent in part"):
        read(write(tmp_path / "a.png", pixels, vector=True), 2)


def test_grey_levels_in_rgb_are_values(tmp_path):
    grey = square(1)
    grey[3:, 4:] *= 2
    pixels = np.stack([grey] * 3, -1)
    path = write(tmp_path / "a.png", pixels, vector=True)
    assert np.array_equal(read(path, 2, {1: "body", 2: "ventricle"}), pixels[..., 0])


def test_several_colours_are_refused(tmp_path):
    pixels = square()[..., None] * np.array((0, 255, 0), np.uint8)
    pixels[3, 4] = 255, 0, 0
    with pytest.raises(UserError, match=r"2 colours beside black, such as \(0, 255, 0\), \(255"):
        read(write(tmp_path / "a.png", pixels, vector=True), 2)


@pytest.mark.parametrize("name, stored_as", [("a.jpg", "a.jpg"), ("a.png", "a.jpeg")])
def test_jpeg_is_refused_whatever_it_is_called(tmp_path, name, stored_as):
    write(tmp_path / stored_as, square(255)).rename(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: JPEG changes label values; expected a lossless"):
        read(tmp_path / name, 2)


def test_tiff_is_read_unless_it_holds_jpeg(tmp_path):
    path = write(tmp_path / "a.tif", square(255))
    assert np.array_equal(read(path, 2), square())
    whole = bytearray(path.read_bytes())
    entry = whole.index(b"\x03\x01\x03\x00\x01\x00\x00\x00")  # the tag of the compression
    whole[entry + 8 : entry + 10] = (7).to_bytes(2, "little")
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"a.tif: JPEG changes label values"):
        labels.require_lossless(path)


def test_a_large_tiff_and_all_of_its_pages_are_looked_at(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([square(), square()]), bigtiff=True, photometric="minisblack")
    labels.require_lossless(path)
    whole = bytearray(path.read_bytes())
    entry = whole.rindex(b"\x03\x01\x03\x00" + struct.pack("<Q", 1))  # of the second page
    whole[entry + 12 : entry + 14] = (7).to_bytes(2, "little")
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"a.tif: JPEG changes label values"):
        labels.require_lossless(path)


def test_dicom_is_read_unless_it_says_that_it_lost_something(tmp_path):
    image = sitk.JoinSeries([sitk.GetImageFromArray(square())])
    for name, lossy in (("a", "00"), ("b", "01")):
        image.SetMetaData("0028|2110", lossy)
        sitk.WriteImage(image, str(tmp_path / f"{name}.dcm"))
    labels.require_lossless(tmp_path / "a.dcm")
    with pytest.raises(UserError, match=r"b.dcm: lossy DICOM changes label values; expected a los"):
        labels.require_lossless(tmp_path / "b.dcm")


def test_a_slice_is_read_in_both_dimensions(tmp_path):
    path = write(tmp_path / "a.nii.gz", square()[None])
    assert read(path, 2).shape == (8, 10)
    assert read(path, 3).shape == read(path, None).shape == (1, 8, 10)
    with pytest.raises(UserError, match="expected 2"):
        read(write(tmp_path / "b.nii.gz", volume(1)), 2)


def ring(radius=10, width=2):
    y, x = np.mgrid[-15:16, -15:16]
    distance = np.hypot(x, y)
    return ((distance <= radius) & (distance > radius - width)).astype(np.uint8)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_an_outline_gets_a_warning_that_says_how_much_it_lacks(tmp_path, caplog, dimensions):
    outline = ring()
    y, x = np.mgrid[-15:16, -15:16]
    lacking = np.count_nonzero(np.hypot(x, y) <= 8) / np.count_nonzero(outline)
    voxels = outline if dimensions == 2 else np.stack([0 * outline, outline, outline])
    path = write(tmp_path / ("a.png" if dimensions == 2 else "a.nrrd"), voxels)
    assert np.array_equal(read(path, dimensions), voxels)
    what = "area" if dimensions == 2 else "volume"
    told = f"filling would change the {what} by +{100 * lacking:.0f} % (label 1)"
    assert told in caplog.text and path.name in caplog.text
    caplog.clear()
    read(path, dimensions, truth=False)
    assert not caplog.text


def test_what_holds_another_structure_is_no_outline(tmp_path, caplog):
    nested = ring()
    y, x = np.mgrid[-15:16, -15:16]
    nested[np.hypot(x, y) <= 7] = 2  # within a rim of background
    small = np.ones((20, 20), np.uint8)
    small[5:8, 5:8] = small[:, 0] = 0  # a hole of 9 in 371
    read(write(tmp_path / "a.png", nested), 2, {1: "body", 2: "ventricle"})
    read(write(tmp_path / "b.png", small), 2)
    assert not caplog.text


def test_ignored_voxels_have_a_value_of_their_own(tmp_path):
    known = {0: "background", 1: "liver", 2: "ignore"}
    path = write(tmp_path / "a.nrrd", volume(1, 2))
    assert read(path, 3, known).ravel()[:3].tolist() == [1, labels.IGNORED, 0]
    assert labels.ignored(known) == 2 and labels.ignored({1: "liver"}) is None
    for bad in ({1: "ignore", 255: "liver"}, {1: "ignore", 2: "Ignore"}):
        with pytest.raises(UserError, match="expected one 'ignore' label"):
            labels.ignored(bad)


def test_ignored_voxels_are_background_in_prediction_and_truth():
    prediction, truth = labels.left_out(np.array([1, 1, 0, 2]), np.array([1, 255, 255, 0]))
    assert prediction.tolist() == [1, 0, 0, 2] and truth.tolist() == [1, 0, 0, 0]
