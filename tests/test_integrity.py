"""Cut, flipped and lying files of every format that is read, and odd ones that are whole."""

import contextlib
import gzip
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
import tifffile

from tf_autoctx.data import images, integrity, isolation
from tf_autoctx.data.integrity import claims
from tf_autoctx.errors import UserError

pytestmark = pytest.mark.usefixtures("own_processes")  # their memory is measured

VOXELS = np.random.default_rng(0).integers(0, 1000, (6, 20, 30)).astype(np.int16)
VOLUME = sitk.GetImageFromArray(VOXELS)
GREY = (VOXELS[0] % 256).astype(np.uint8)


DEFLATED = "1.2.840.10008.1.2.1.99"


def dicom(path, pixels, syntax="1.2.840.10008.1.2.1", frames=None, extra=b"", preamble=True):
    """A DICOM file of int16 pixels (y, x), or of bytes as they are."""
    order = ">" if syntax == "1.2.840.10008.1.2.2" else "<"
    implicit = syntax == "1.2.840.10008.1.2"

    def element(tag, kind, value, order=order, implicit=implicit):
        value += b"\0" * (len(value) % 2)
        head = struct.pack(f"{order}2H", tag >> 16, tag & 0xFFFF)
        if implicit:
            return head + struct.pack(f"{order}I", len(value)) + value
        if kind in (b"OW", b"SQ"):
            return head + kind + b"\0\0" + struct.pack(f"{order}I", len(value)) + value
        return head + kind + struct.pack(f"{order}H", len(value)) + value

    def number(tag, value):
        return element(tag, b"US", struct.pack(f"{order}H", value))

    uid = element(0x00020010, b"UI", syntax.encode(), "<", False)
    length = element(0x00020000, b"UL", struct.pack("<I", len(uid)), "<", False)
    body = element(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2")
    body += element(0x00080060, b"CS", b"CT")
    body += number(0x00280002, 1) + element(0x00280004, b"CS", b"MONOCHROME2")
    body += element(0x00280008, b"IS", str(frames).encode()) if frames else b""
    body += number(0x00280010, 20) + number(0x00280011, 30) + number(0x00280100, 16)
    body += number(0x00280101, 16) + number(0x00280102, 15) + number(0x00280103, 1) + extra
    if pixels is not None:
        raw = pixels.astype(f"{order}i2").tobytes() if isinstance(pixels, np.ndarray) else pixels
        body += element(0x7FE00010, b"OW", raw)
    if syntax == DEFLATED:
        packer = zlib.compressobj(wbits=-15)
        body = packer.compress(body) + packer.flush()
    path.write_bytes((bytes(128) + b"DICM" + length + uid if preamble else b"") + body)


def compressed_dicom(path, compressor, image):
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    writer.Execute(image)


def nifti_2(path):
    header = bytearray(544)
    struct.pack_into(
        "<i8s2h8q", header, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16, 3, 30, 20, 6, 1, 1, 1, 1
    )
    struct.pack_into("<8d", header, 104, *[1.0] * 8)
    struct.pack_into("<q", header, 168, 544)
    path.write_bytes(bytes(header) + VOXELS.tobytes())


def written(compressed=False, image=VOLUME):
    return lambda path: sitk.WriteImage(image, str(path), useCompression=compressed)


def picture(pixels=GREY, **options):
    return lambda path: PIL.Image.fromarray(pixels).save(path, **options)


def stack(**options):
    return lambda path: tifffile.imwrite(path, VOXELS, photometric="minisblack", **options)


# {file: (what writes it, the file of its voxels)}
FORMATS = {
    "1.nii": (written(), "1.nii"),
    "1.nii.gz": (written(), "1.nii.gz"),
    "2.nii": (nifti_2, "2.nii"),
    "raw.nrrd": (written(), "raw.nrrd"),
    "gz.nrrd": (written(True), "gz.nrrd"),
    "raw.nhdr": (written(), "raw.raw"),
    "gz.nhdr": (written(True), "gz.raw.gz"),
    "raw.mha": (written(), "raw.mha"),
    "z.mha": (written(True), "z.mha"),
    "raw.mhd": (written(), "raw.raw"),
    "z.mhd": (written(True), "z.zraw"),
    "8.png": (picture(), "8.png"),
    "16.png": (picture(VOXELS[0].astype(np.uint16)), "16.png"),
    "rgb.png": (picture(np.stack([GREY] * 3, -1)), "rgb.png"),
    "grey.jpg": (picture(), "grey.jpg"),
    "progressive.jpg": (picture(np.stack([GREY] * 3, -1), progressive=True), "progressive.jpg"),
    "one.tif": (picture(), "one.tif"),
    "lzw.tif": (picture(compression="tiff_lzw"), "lzw.tif"),
    "itk.tif": (written(), "itk.tif"),
    "stack.tif": (stack(), "stack.tif"),
    "zlib.tif": (stack(compression="zlib"), "zlib.tif"),
    "big.tif": (stack(bigtiff=True), "big.tif"),
    "raw.dcm": (written(image=VOLUME[:, :, :1]), "raw.dcm"),
    "jpeg.dcm": (
        lambda path: compressed_dicom(path, "JPEG", sitk.GetImageFromArray(GREY[None])),
        "jpeg.dcm",
    ),
    "jpeg2000.dcm": (
        lambda path: compressed_dicom(path, "JPEG2000", VOLUME[:, :, :1]),
        "jpeg2000.dcm",
    ),
}


def make(folder, name):
    """Writes a file into a folder of its own: the folder."""
    folder = folder / f"{name}.folder"
    folder.mkdir()
    FORMATS[name][0](folder / name)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of whole files for each format, and the voxels of those that ITK reads."""
    root = tmp_path_factory.mktemp("whole")
    folders = {name: make(root, name) for name in FORMATS}
    return folders, {name: itk(folder / name) for name, folder in folders.items()}


def itk(path):
    """The voxels of a file; None where ITK does not read it."""
    try:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError:
        return None


PARTS = [
    (name, part) for name, (_, data) in FORMATS.items() for part in dict.fromkeys((name, data))
]


@pytest.mark.parametrize("name, part", PARTS, ids=[f"{n}-{p}" for n, p in PARTS])
def test_a_file_that_is_cut_short_is_named_or_lacks_only_padding(tmp_path, whole, name, part):
    folders, voxels = whole
    integrity.check(folders[name] / name)
    data = (folders[name] / part).read_bytes()
    size, refused = len(data), 0
    cuts = {0, 2, 20, 200, size // 10, size // 2, size * 9 // 10, size * 99 // 100, size - 1}
    cuts |= {size - 2, size - 4, size - 8, size - 13}
    cuts = {cut for cut in cuts if 0 <= cut < size}
    for cut in sorted(cuts):
        folder = tmp_path / str(cut)
        shutil.copytree(folders[name], folder)
        (folder / part).write_bytes(data[:cut])
        try:
            integrity.check(folder / name)
        except UserError as error:
            assert str(folder / name) in str(error) and "\n" not in str(error)
            refused += 1
            continue
        read = itk(folder / name)  # a text header may lack its last line's end
        assert size - cut <= 13, f"{cut} of {size} bytes are taken for all"
        assert read is None or np.array_equal(read, voxels[name])
    assert refused >= len(cuts) - 5


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_a_cut_jpeg_that_got_its_end_back_is_damaged(tmp_path, cut):
    """libjpeg fills in grey and only says so, on standard output."""
    PIL.Image.fromarray(np.kron(GREY, np.ones((8, 8), np.uint8))).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[: int(cut * len(data))] + b"\xff\xd9")
    integrity.check(tmp_path / "a.jpg")
    with pytest.raises(
        UserError, match=r"b.jpg: cut off or damaged, its reader says 'Corrupt JPEG"
    ):
        integrity.check(tmp_path / "b.jpg")


# Flipped bytes

GIGABYTE = 1 << 30
# Formats with a checksum for each byte that matters.
SUMMED = ("1.nii.gz", "8.png", "16.png", "rgb.png")


def header(name, data):
    """How many bytes are no voxels without a checksum."""
    ends = {
        ".nii": 352,
        ".jpg": data.rfind(b"\xff\xda") + 10,
        ".dcm": data.rfind(b"\x7f\x10\0") + 8,
    }
    ends |= {".mha": data.find(b"LOCAL") + 6, ".nrrd": data.find(b"\n\n") + 2, ".tif": 250}
    return len(data) if name in SUMMED else ends.get(os.path.splitext(name)[1], len(data))


def peak():
    """Most memory of this process, bytes; `ru_maxrss` would count its parent's before exec."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


def from_now_on():
    """The memory of now, which `peak` counts from."""
    with contextlib.suppress(OSError):  # where it may not be set back
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return peak()


def checked(path):
    """(voxels or what the refusal says, peak of memory in bytes); ends itself after 10 s."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(10)
    try:
        integrity.check(path)
        outcome = itk(path)
    except UserError as error:
        outcome = str(error)
    signal.alarm(0)
    return outcome, peak()


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "itk.tif"])
def test_a_flipped_byte_in_a_header_ends_nothing(tmp_path, whole, name):
    folders, voxels = whole
    data, rng = (folders[name] / name).read_bytes(), random.Random(name)
    shutil.copytree(folders[name], tmp_path, dirs_exist_ok=True)
    tasks = {}
    for number in range(60):
        flipped, at = bytearray(data), rng.randrange(header(name, data))
        flipped[at] = rng.choice([0, 255, rng.randrange(256), flipped[at] ^ 1 << rng.randrange(8)])
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(flipped)
        tasks[number, at, data[at], flipped[at]] = (str(path),)
    with isolation.Pool(1) as pool:
        outcomes = dict(pool.map(checked, tasks.items()))
    refused = 0
    for task, outcome in outcomes.items():
        assert not isinstance(outcome, UserError), (task, outcome)  # an abort, or 10 s
        read, most = outcome
        assert most < 2 * GIGABYTE, task
        if isinstance(read, str):
            refused += 1
            assert read.startswith(tasks[task][0]), read
        elif read is not None and voxels[name] is not None:
            assert read.shape == voxels[name].shape, task
            assert name not in SUMMED or np.array_equal(read, voxels[name]), task
    assert refused


# What headers claim


def claimed(path, size, packed, count=0):
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *size, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    data = bytes(header) + bytes(count)
    path.write_bytes(gzip.compress(data) if packed else data)


@pytest.mark.parametrize("packed", [False, True])
def test_a_claim_beyond_the_file_is_refused_before_anything_is_allocated(tmp_path, packed):
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    claimed(path, (30000, 30000, 30000), packed)
    assert not packed or path.stat().st_size < 100
    before = from_now_on()
    with pytest.raises(UserError, match=r"a.nii.*: cut off or damaged; .* 27000000000000 bytes"):
        integrity.check(path)
    assert peak() < before + 100_000_000


def test_a_claim_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    claimed(tmp_path / "a.nii.gz", (200, 200, 100), True, 4_000_000)
    integrity.check(tmp_path / "a.nii.gz")
    monkeypatch.setattr(claims, "memory_at_hand", lambda: 3_000_000)
    with pytest.raises(UserError, match=r"size \(200, 200, 100\), 0.004 GB; .* 0.003 GB of memory"):
        integrity.check(tmp_path / "a.nii.gz")


def test_memory_at_hand_heeds_the_limit_of_the_process():
    at_hand = claims.memory_at_hand()
    assert 1e8 < at_hand <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    used = pages * os.sysconf("SC_PAGE_SIZE")
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + 10**8, limits[1]))
        assert claims.memory_at_hand() <= 10**8
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_bomb_is_not_unpacked_to_its_end(tmp_path):
    claimed(tmp_path / "a.nii.gz", (10, 10, 10), True, 300_000_000)
    before = from_now_on()
    with pytest.raises(UserError, match="holds more than the 1000 bytes of voxels of its header"):
        integrity.check(tmp_path / "a.nii.gz")
    assert peak() < before + 50_000_000


def test_padding_behind_the_voxels_is_told_and_more_refused(tmp_path, caplog):
    claimed(tmp_path / "a.nii", (10, 10, 10), False, 1010)
    integrity.check(tmp_path / "a.nii")
    assert "a.nii: holds 10 bytes behind its voxels; ignored." in caplog.text
    claimed(tmp_path / "a.nii", (10, 10, 9), False, 1000)
    with pytest.raises(UserError, match="more than the 900 bytes of voxels"):
        integrity.check(tmp_path / "a.nii")


# Names and contents


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
@pytest.mark.parametrize("name", [b"caf\xe9.mha", b"caf\xe9/a.mha"])
def test_a_name_that_is_not_utf_8_is_refused_and_printable(tmp_path, name):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shutil.copy(make(tmp_path, "raw.mha") / "raw.mha", path)
    with pytest.raises(UserError, match=r"caf\\xe9.*: the name is not UTF-8; rename") as error:
        integrity.check(path)
    str(error.value).encode()


def copy(source):
    return lambda path: path.write_bytes((make(path.parent, source) / source).read_bytes())


def put(data):
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    "name, write, told",
    [
        ("a.png", copy("grey.jpg"), "is a JPEG file by its contents; expected PNG or TIFF"),
        ("a.nii", copy("8.png"), "is a PNG file by its contents; expected NIfTI, or a name"),
        ("a.dcm", copy("8.png"), "is a PNG file by its contents; expected DICOM"),
        ("a.png", copy("raw.dcm"), "is a DICOM file by its contents"),
        ("a.mha", copy("raw.nrrd"), "is an NRRD file by its contents; expected MetaImage"),
        ("a.mha", put(gzip.compress(b"ObjectType = Image\n")), "packed by gzip; expected an unp"),
        ("a.nrrd", copy("1.nii.gz"), "is a NIfTI file packed by gzip; expected a name .* .nii.gz"),
        ("a.nii.gz", put(b"PK\x03\x04"), "is a ZIP archive; expected an intact .nii.gz file"),
        ("a.nii.gz", put(b"version https://git-lfs.github.com"), "Git LFS pointer, its image was"),
        ("a.nii.gz", put(b"<!DOCTYPE html>"), "is a web page or XML"),
        ("a.png", put(b""), "not a readable image; expected an intact .png file, not an empty one"),
        ("a.tif", put(b"hello"), "not a readable image; expected an intact .tif file"),
        ("a.nii.gz", put(gzip.compress(b"x" * 400)), "packed by gzip; expected an intact NIfTI"),
        ("a.txt", put(b"hello"), "not a readable image; expected an intact .nii.gz, .nii"),
        ("a.mha", lambda path: None, "No such file or directory; expected an image file or a DI"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, name, write, told):
    write(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: .*{told}"):
        integrity.check(tmp_path / name)


@pytest.mark.parametrize(
    "name, source",
    [
        ("a.nii", "1.nii.gz"),
        ("a.nii.gz", "1.nii"),
        ("A.NII.GZ", "1.nii.gz"),
        ("a.jpg", "8.png"),
        ("a.png", "one.tif"),
        ("IM_0001", "raw.dcm"),
        ("1.2.840.113", "raw.dcm"),
    ],
)
def test_what_itk_reads_under_another_name_is_whole(tmp_path, name, source):
    copy(source)(tmp_path / name)
    integrity.check(tmp_path / name)


# MetaImage and NRRD

META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = {binary}\nBinaryDataByteOrderMSB = False\n"
    "CompressedData = {compressed}\n{more}ElementSpacing = 1 1 1\nDimSize = 30 20 6\n"
    "ElementType = MET_SHORT\nElementDataFile = {data}\n"
)


def meta(path, data, voxels=b"", binary=True, compressed=False, more=""):
    text = META.format(binary=binary, compressed=compressed, more=more, data=data)
    path.write_bytes(text.encode() + voxels)


NRRD = "NRRD0004\n# note\ntype: short\ndimension: 3\nsizes: 30 20 6\nendian: little\n"


def nrrd(path, encoding, voxels=b"", more=""):
    path.write_bytes(f"{NRRD}encoding: {encoding}\n{more}\n".encode() + voxels)


def slices(folder):
    for number, voxels in enumerate(VOXELS, start=1):
        (folder / f"s{number:02d}.raw").write_bytes(voxels.tobytes())
    return "\n".join(f"s{number:02d}.raw" for number in range(1, 7))


NUMBERS = " ".join(map(str, VOXELS.ravel())).encode()
ODD = {
    "end.mhd": lambda path: (
        (path.parent / "v.raw").write_bytes(b"head" + VOXELS.tobytes()),
        meta(path, "v.raw", more="HeaderSize = -1\n"),
    ),
    "skip.mhd": lambda path: (
        (path.parent / "v.raw").write_bytes(b"head" + VOXELS.tobytes()),
        meta(path, "v.raw", more="HeaderSize = 4\n"),
    ),
    "list.mhd": lambda path: meta(path, "LIST\n" + slices(path.parent)),
    "numbered.mhd": lambda path: (slices(path.parent), meta(path, "s%02d.raw 1 6 1")),
    "slicer.mha": lambda path: meta(
        path, "LOCAL", VOXELS.tobytes(), more="Seq_Frame0000_Timestamp = 1.5\nComment = hello\n"
    ),
    "unscaled.mha": lambda path: meta(
        path,
        "LOCAL",
        VOXELS.tobytes(),
        more="ElementToIntensityFunctionSlope = 1.0\nElementToIntensityFunctionOffset = 0\n",
    ),
    "text.nrrd": lambda path: nrrd(path, "ascii", NUMBERS),
    "hex.nrrd": lambda path: nrrd(path, "hex", VOXELS.tobytes().hex().encode()),
    "two.nrrd": lambda path: nrrd(
        path, "gzip", b"".join(gzip.compress(part.tobytes()) for part in VOXELS)
    ),
    "skip.nhdr": lambda path: (
        (path.parent / "v.raw").write_bytes(b"line\nhead" + VOXELS.tobytes()),
        nrrd(path, "raw", more="line skip: 1\nbyte skip: 4\ndata file: v.raw\n"),
    ),
    "end.nhdr": lambda path: (
        (path.parent / "v.raw").write_bytes(b"head" + VOXELS.tobytes()),
        nrrd(path, "raw", more="byte skip: -1\ndata file: v.raw\n"),
    ),
    "list.nhdr": lambda path: nrrd(path, "raw", more="data file: LIST\n" + slices(path.parent)),
    "numbered.nhdr": lambda path: (
        slices(path.parent),
        nrrd(path, "raw", more="data file: s%02d.raw 1 6 1\n"),
    ),
    "implicit.dcm": lambda path: dicom(path, VOXELS[0], "1.2.840.10008.1.2"),
    "big.dcm": lambda path: dicom(path, VOXELS[0], "1.2.840.10008.1.2.2"),
    "deflated.dcm": lambda path: dicom(path, VOXELS[0], DEFLATED),
    "bare.dcm": lambda path: dicom(path, VOXELS[0], "1.2.840.10008.1.2", preamble=False),
    "big.tif": stack(byteorder=">"),
    "imagej.tif": lambda path: tifffile.imwrite(path, VOXELS, imagej=True),
    "tagged.nii": lambda path: (
        written()(path),
        path.write_bytes(extended(path.read_bytes())),
    ),
}


def extended(data):
    """A NIfTI file with an extension of 32 bytes."""
    header = bytearray(data[:348])
    struct.pack_into("<f", header, 108, 384)
    return bytes(header) + b"\1\0\0\0" + struct.pack("<2i", 32, 6) + b"note".ljust(24) + data[352:]


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_whole_and_their_voxels_right(tmp_path, name):
    ODD[name](tmp_path / name)
    integrity.check(tmp_path / name)
    expected = VOXELS[:1] if name.endswith(".dcm") else VOXELS
    np.testing.assert_array_equal(itk(tmp_path / name), expected)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth, colour", [(1, 0), (2, 0), (8, 0), (16, 0), (8, 2), (8, 4), (4, 3)])
def test_a_png_has_all_rows_of_all_passes(tmp_path, depth, colour, interlaced):
    """Rows of zeros of 13 x 11 pixels; interlaced, of Adam7's seven images."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2}[colour]
    sizes = [(13, 11)]
    if interlaced:
        # Columns and rows 0 8 ..., 4 12, 0 4 8 12, 2 6 10, 0 2 ... 12, 1 3 ... 11, 0 ... 12.
        sizes = [(2, 2), (2, 2), (4, 1), (3, 3), (7, 3), (6, 6), (13, 5)]
    rows = b"".join(bytes(1 + -(-width * bits // 8)) * height for width, height in sizes)

    def write(rows):
        header = struct.pack(">2I5B", 13, 11, depth, colour, 0, 0, interlaced)
        chunks = [(b"IHDR", header), (b"PLTE", bytes(48)), (b"IDAT", zlib.compress(rows))]
        data = b"\x89PNG\r\n\x1a\n"
        for kind, body in [*chunks[: 1 + (colour == 3)], chunks[2], (b"IEND", b"")]:
            data += struct.pack(">I", len(body)) + kind + body
            data += struct.pack(">I", zlib.crc32(kind + body))
        (tmp_path / "a.png").write_bytes(data)

    write(rows)
    integrity.check(tmp_path / "a.png")
    assert PIL.Image.open(tmp_path / "a.png").convert("L").size == (13, 11)
    write(rows[:-1])
    with pytest.raises(UserError, match=f"expected {len(rows)} bytes .*not {len(rows) - 1}"):
        integrity.check(tmp_path / "a.png")


def described(path, text):
    tifffile.imwrite(path, VOXELS[:2], description=text, metadata=None, photometric="minisblack")


def pages(path):
    with tifffile.TiffWriter(path) as file:
        for pixels in (VOXELS[0], VOXELS[1, :10]):
            file.write(pixels, photometric="minisblack", metadata=None)


def circle(path):
    """The second directory leads to the first."""
    tifffile.imwrite(path, VOXELS[:2], photometric="minisblack", metadata=None)
    data = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", data, 4)[0]
    second = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    place = struct.unpack_from("<I", data, second)[0]
    end = place + 2 + 12 * struct.unpack_from("<H", data, place)[0]
    struct.pack_into("<I", data, end, first)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name, write, told",
    [
        ("a.mha", lambda p: meta(p, "LOCAL", VOXELS.tobytes()[:-1]), "expected 7200 .*not 7199"),
        (
            "a.mha",
            lambda p: meta(p, "LOCAL", zlib.compress(VOXELS.tobytes()), compressed=True),
            "its header lacks CompressedDataSize",
        ),
        (
            "a.mha",
            lambda p: meta(
                p, "LOCAL", VOXELS.tobytes(), more="ElementToIntensityFunctionOffset = -1024\n"
            ),
            "has ElementToIntensityFunctionOffset = -1024, which readers leave out; expected 0, st",
        ),
        (
            "a.mha",
            lambda p: meta(p, "LOCAL", more="ElementToIntensityFunctionSlope = 2\n"),
            "has ElementToIntensityFunctionSlope = 2, which",
        ),
        ("a.mha", lambda p: meta(p, "LOCAL", NUMBERS, False), "as text; expected BinaryData = Tr"),
        ("a.mha", lambda p: meta(p, "LOCAL", more="NDims = 3\n"), "its header has NDims twice"),
        ("a.mha", lambda p: meta(p, "LOCAL", more="Offset = 1 2\n"), "2 numbers for Offset"),
        ("a.mha", lambda p: meta(p, "LOCAL", more="nonsense\n"), "a line of its header is 'nons"),
        ("a.mhd", lambda p: meta(p, "gone.raw"), "its data file 'gone.raw' is missing; expected"),
        ("a.mhd", lambda p: meta(p, "s%d.raw 1 99999999 1"), "names no data files"),
        ("a.mhd", lambda p: meta(p, "77 % x.raw"), "'77 % x.raw' names no data files"),
        ("a.nrrd", lambda p: nrrd(p, "raw", VOXELS.tobytes()[:-1]), "expected 7200 .*not 7199"),
        ("a.nrrd", lambda p: nrrd(p, "ascii", NUMBERS[:-5]), "expected 3600 numbers"),
        ("a.nrrd", lambda p: nrrd(p, "hex", b"0" * 14399), "expected 7200 .*not 7199"),
        ("a.nrrd", lambda p: nrrd(p, "bzip2", b"BZh"), "has the encoding 'bzip2'; expected raw"),
        ("a.nhdr", lambda p: nrrd(p, "raw", more="data file: no.raw\n"), "'no.raw' is missing"),
        ("a.tif", lambda p: described(p, "ImageJ=1.53\nimages=16\n"), "has 2 of the 16 pages of"),
        ("a.tif", lambda p: described(p, '{"shape": [16, 20, 30]}'), "has 2 of the 16 pages of"),
        ("a.tif", pages, "page 2 has 30 x 10 pixels of 16 bits, page 1 30 x 20 of 16; expected"),
        ("a.tif", circle, "its directories lead in circles"),
        (
            "a.tif",
            lambda p: tifffile.imwrite(p, np.float16(VOXELS)),
            "have 16 bits of SampleFormat 3; expected whole numbers of up to 32 bits or floats",
        ),
        (
            "a.tif",
            lambda p: tifffile.imwrite(p, VOXELS.astype(np.float64)),
            "have 64 bits of SampleFormat 3",
        ),
        (
            "a.tif",
            lambda p: tifffile.imwrite(p, GREY, photometric="miniswhite"),
            r"meant to be dark .WhiteIsZero.; expected BlackIsZero, convert",
        ),
        ("a.tif", stack(tile=(16, 16)), "would lose bits of its pixels in reading"),
        ("a.dcm", lambda p: dicom(p, VOXELS[0][:-1]), "expected 1200 .*not 1140"),
        ("a.dcm", lambda p: dicom(p, VOXELS[0][:-3], DEFLATED), "expected 1200 .*not 1020"),
        (
            "a.dcm",
            lambda p: (dicom(p, VOXELS[0], DEFLATED), p.write_bytes(p.read_bytes()[:-9])),
            "what is packed ends too soon",
        ),
        ("a.dcm", lambda p: dicom(p, None, DEFLATED), "holds no pixels .modality 'CT'."),
        ("a.dcm", lambda p: dicom(p, VOXELS[0], frames=3), "expected 3600 .*not 1200"),
        ("a.dcm", lambda p: dicom(p, VOXELS), "holds more than the 1200 bytes of voxels"),
        ("a.dcm", lambda p: dicom(p, None), "holds no pixels .modality 'CT'.; exp"),
        (
            "a.dcm",
            lambda p: dicom(p, VOXELS[0], extra=struct.pack("<2H2sH", 0x29, 1, b"ZZ", 0)),
            r"element \(0029,0001\) is of no known kind",
        ),
        (
            "a.dcm",
            lambda p: dicom(p, VOXELS[0], extra=struct.pack("<2H2s2xI", 0x29, 1, b"OB", 9999)),
            r"element \(0029,0001\) ends too soon",
        ),
    ],
)
def test_what_a_header_promises_is_there(tmp_path, name, write, told):
    write(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: .*{told}") as error:
        integrity.check(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path)) and str(error.value).endswith(".")


def test_headers_may_share_a_file_of_voxels(tmp_path, caplog):
    (tmp_path / "v.raw").write_bytes(VOXELS.tobytes() * 2)
    nrrd(tmp_path / "a.nhdr", "raw", more="byte skip: 100\ndata file: v.raw\n")
    integrity.check(tmp_path / "a.nhdr")
    assert "v.raw): holds 7100 bytes behind its voxels; ignored." in caplog.text
    nrrd(tmp_path / "a.nhdr", "raw", more="data file: v.raw\n")
    with pytest.raises(UserError, match="more than the 7200 bytes of voxels of its header"):
        integrity.check(tmp_path / "a.nhdr")


def test_nested_sequences_of_dicom_are_passed_over(tmp_path):
    """An icon in a sequence of unknown length has rows, columns and pixels of its own."""
    icon = struct.pack("<2H2sHH", 0x28, 0x10, b"US", 2, 500)
    icon += struct.pack("<2H2s2xI", 0x7FE0, 0x10, b"OW", 4) + bytes(4)
    item = struct.pack("<2HI", 0xFFFE, 0xE000, 0xFFFFFFFF) + icon
    item += struct.pack("<2HI", 0xFFFE, 0xE00D, 0)
    sequence = struct.pack("<2H2s2xI", 0x88, 0x200, b"SQ", 0xFFFFFFFF) + item
    sequence += struct.pack("<2HI", 0xFFFE, 0xE0DD, 0)
    dicom(tmp_path / "a.dcm", VOXELS[0], extra=sequence)
    integrity.check(tmp_path / "a.dcm")
    np.testing.assert_array_equal(itk(tmp_path / "a.dcm"), VOXELS[:1])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(UserError, match=r"a.nii: is a pipe or a device; expected an image file"):
        integrity.check(tmp_path / "a.nii")
    with pytest.raises(UserError, match=r"a.nii: is a pipe or a device"):
        images.read(tmp_path / "a.nii")


def test_a_folder_is_checked_by_its_name_alone(tmp_path):
    integrity.check(tmp_path)
