"""DICOM folders and files, made by pydicom."""

import contextlib
import pathlib
import shutil

import numpy as np
import pytest
import rest_server
import running
import SimpleITK as sitk
from made_up_dicom import (
    CINE,
    EXPLICIT,
    SHAPE,
    ULTRASOUND,
    dataset,
    enhanced,
    expected,
    pydicom,
    save,
    slice_of,
    stored,
    write,
)

from tf_autoctx.data import datasets, dicom, images, labels
from tf_autoctx.errors import UserError

# Whole series


@pytest.mark.parametrize(
    "syntax",
    [
        EXPLICIT,
        pydicom.uid.ImplicitVRLittleEndian,
        pydicom.uid.ExplicitVRBigEndian,
        pydicom.uid.DeflatedExplicitVRLittleEndian,
    ],
)
def test_a_series_is_a_volume_in_order_of_position(tmp_path, syntax):
    write(tmp_path / "scan", syntax=syntax)
    image = images.read(tmp_path / "scan")
    np.testing.assert_array_equal(image.array, expected())
    assert image.array.dtype == np.float32
    assert image.millimetres == (2.0, 0.75, 0.5) and image.orientation == "LPS"
    assert image.grid.origin == (-7, 3, 10)


@pytest.mark.parametrize("name", ["IM{}", "{}.IMA", "slice.{}", "{}.png", "MR.1.2.3.{}"])
def test_files_count_whatever_they_are_called(tmp_path, name):
    write(tmp_path, name=name)
    np.testing.assert_array_equal(images.read(tmp_path).array, expected())


def test_a_label_has_no_slice_that_lost_something(tmp_path):
    write(tmp_path)
    labels.require_lossless(tmp_path)
    save(slice_of(18, LossyImageCompression="01"), tmp_path / "last.dcm")
    with pytest.raises(UserError, match=r"last.dcm: lossy DICOM changes label values; expected"):
        labels.require_lossless(tmp_path)


def test_what_lies_beside_a_series_hides_none_of_it(tmp_path):
    write(tmp_path)
    sitk.WriteImage(sitk.Image([6, 5], sitk.sitkUInt8), str(tmp_path / "thumbnail.png"))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._IM99.dcm").write_bytes(b"of macOS")
    report = dataset(stored(0), uid="1.2.9", kind="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(report, tag)
    save(report, tmp_path / "report.dcm")
    np.testing.assert_array_equal(images.read(tmp_path).array, expected())
    assert list(dicom.series_in(tmp_path)) == ["1.2.3.4"]


@pytest.mark.parametrize(
    "axes, orientation",
    [
        ([0, 1, 0, 0, 0, -1], "PIR"),  # sagittal, rows to the back and columns to the feet
        ([1, 0, 0, 0, 0, -1], "LIP"),  # coronal
        ([-1, 0, 0, 0, -1, 0], "RAS"),
    ],
)
def test_slices_of_any_direction(tmp_path, axes, orientation):
    normal = np.cross(axes[:3], axes[3:])
    for number in range(4):
        tags = {
            "ImageOrientationPatient": axes,
            "ImagePositionPatient": list(2.0 * number * normal),
        }
        save(slice_of(number, **tags), tmp_path / f"{number}.dcm")
    image = images.read(tmp_path)
    assert image.orientation == orientation
    back = image.like(image.array)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), expected(range(4)))
    theirs = sitk.ReadImage([str(tmp_path / f"{k}.dcm") for k in range(4)])
    np.testing.assert_allclose(back.GetDirection(), theirs.GetDirection())
    np.testing.assert_allclose(back.GetOrigin(), theirs.GetOrigin())


# Values


def test_each_slice_has_its_own_slope_and_intercept(tmp_path):
    for number, (slope, intercept) in enumerate([(1, 0), (2.5, -1000), (0.001, 5), (10, -800)]):
        made = slice_of(2 * number, stored(3), RescaleSlope=slope, RescaleIntercept=intercept)
        save(made, tmp_path / f"{number}.dcm")
    truth = [stored(3) * s + i for s, i in ((1, 0), (2.5, -1000), (0.001, 5), (10, -800))]
    np.testing.assert_allclose(images.read(tmp_path).array, truth, rtol=1e-6)


def test_unsigned_pixels_of_negative_values(tmp_path):
    for number in range(3):
        pixels = np.full(SHAPE, 224, np.uint16)
        made = slice_of(number, pixels, RescaleIntercept=0 if number == 0 else -1024)
        save(made, tmp_path / f"{number}.dcm")
    assert images.read(tmp_path).array[:, 0, 0].tolist() == [224, -800, -800]


@pytest.mark.parametrize("kind, bits", [(np.int16, 16), (np.uint16, 16), (np.uint16, 12)])
def test_values_for_the_opposite_grey_scale_are_those_that_are_stored(tmp_path, kind, bits):
    """GDCM turns them round, which is right for looking at them alone."""
    tags = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": -9}
    tags |= {"BitsStored": bits, "HighBit": bits - 1}
    for z in (10, 12, 14):
        save(slice_of(z, stored(z).astype(kind), **tags), tmp_path / "scan" / f"{z}.dcm")
    truth = 2 * expected((10, 12, 14)) - 9
    np.testing.assert_array_equal(images.read(tmp_path / "scan").array, truth)


def test_a_picture_for_the_opposite_grey_scale_is_turned_round(tmp_path, caplog):
    pixels = np.arange(30, dtype=np.uint8).reshape(SHAPE)
    tags = {"PhotometricInterpretation": "MONOCHROME1", "PixelSpacing": [1, 1]}
    save(dataset(pixels, kind=ULTRASOUND, **tags), tmp_path / "a.dcm")
    with caplog.at_level("WARNING"):
        np.testing.assert_array_equal(images.read_2d(tmp_path / "a.dcm").array, 255 - pixels)
    assert "dark (MONOCHROME1), so they are turned round" in caplog.text
    made = enhanced((10, 12, 14))
    made.PhotometricInterpretation = "MONOCHROME1"
    save(made, tmp_path / "b.dcm")
    with pytest.raises(UserError, match=r"b.dcm: .*MONOCHROME1\); expected MONOCHROME2"):
        images.read(tmp_path / "b.dcm")


def test_values_through_a_table_are_refused(tmp_path):
    write(tmp_path, ModalityLUTSequence=[pydicom.Dataset()])
    with pytest.raises(UserError, match=r"IM9\d.dcm: its values pass through a table"):
        images.read(tmp_path)


# Series that are none


CASES = {
    "missing slice": ((10, 12, 16, 18), {}, "slices 2 to 4 mm apart; expected even steps"),
    "uneven": ((10, 12, 13, 15), {}, "slices 1 to 2 mm apart; expected even steps"),
    "twice": ((10, 12, 12, 14), {}, "IM97.dcm and IM98.dcm lie at one place"),
    "4D": ((10, 12, 10, 12), {}, "lie at one place; expected one volume"),
    "no position": (
        (10, 12),
        {"ImagePositionPatient": None},
        r"tells no position \(ImagePositionPatient\); expected that of every slice",
    ),
    "no orientation": ((10, 12), {"ImageOrientationPatient": None}, "tells no orientation"),
    "no spacing": ((10, 12), {"PixelSpacing": None}, "tells no spacing"),
    "pixels of 0 mm": ((10, 12), {"PixelSpacing": [0, 0]}, r"has pixels of \(0, 0\) mm"),
    "sheared": (
        (10, 12),
        {"ImageOrientationPatient": [1, 0, 0, 0.1, 0.99, 0]},
        "expected two of length 1 at right angles",
    ),
}


@pytest.mark.parametrize("heights, tags, sentence", CASES.values(), ids=CASES)
def test_slices_that_are_no_volume_are_refused(tmp_path, heights, tags, sentence):
    write(tmp_path / "scan", heights, **tags)
    with pytest.raises(UserError, match=sentence) as error:
        images.read(tmp_path / "scan")
    assert "scan" in str(error.value) and "\n" not in str(error.value)


def test_rounded_positions_are_a_volume(tmp_path):
    write(tmp_path, (10, 11.99, 14, 16.01))
    assert images.read(tmp_path).array.shape == (4, *SHAPE)


def test_a_tilted_gantry_is_refused(tmp_path):
    for number in range(4):
        tags = {"ImagePositionPatient": [0, 0.3 * number, 2 * number]}
        save(slice_of(number, **tags), tmp_path / f"{number}.dcm")
    with pytest.raises(UserError, match=r"3.dcm lies 0.9 mm beside the normal.*tilted gantry"):
        images.read(tmp_path)


@pytest.mark.parametrize(
    "tags, what",
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "orientation"),
        ({"PixelSpacing": [0.75, 0.6]}, "pixels"),
        ({"pixels": np.zeros((4, 6), np.int16)}, "size"),
    ],
)
def test_a_slice_unlike_the_others_of_its_series_is_named(tmp_path, tags, what):
    write(tmp_path)
    save(slice_of(18, **tags), tmp_path / "scout.dcm")
    with pytest.raises(UserError, match=f"scout.dcm is of another {what} than IM"):
        images.read(tmp_path)


@pytest.mark.parametrize("which", ["IM99.dcm", "IM97.dcm", "IM96.dcm"])  # first, middle, last
@pytest.mark.parametrize("left", [0, 50, 140, 400, -70, -61, -30, -1])
def test_a_slice_that_is_cut_off_is_named(tmp_path, which, left):
    write(tmp_path)
    raw = (tmp_path / which).read_bytes()
    (tmp_path / which).write_bytes(raw[:left])
    with pytest.raises(UserError, match=f"{which}: .*; expected"):
        images.read(tmp_path)


def test_colour_is_refused(tmp_path):
    for number in range(2):
        made = slice_of(number, np.zeros((3, *SHAPE), np.uint8))
        del made.NumberOfFrames
        made.SamplesPerPixel, made.PlanarConfiguration = 3, 1
        made.PhotometricInterpretation = "RGB"
        save(made, tmp_path / f"{number}.dcm")
    with pytest.raises(UserError, match=r"0.dcm: holds colour; expected one \(grey\) value"):
        images.read(tmp_path)


# Several series


def two_series(folder):
    write(folder, SeriesDescription="Thorax 1.0", SeriesNumber=2)
    write(folder, (0,), "scout{}.dcm", uid="1.2.3.5", SeriesDescription="Scout", SeriesNumber=1)


def test_several_series_are_listed_and_one_is_chosen(tmp_path, caplog):
    two_series(tmp_path / "scan")
    with pytest.raises(UserError) as error:
        images.read(tmp_path / "scan")
    assert str(error.value) == (
        f"{tmp_path / 'scan'}: holds 2 DICOM series, 1: 1.2.3.5 (CT, Scout, 1 slice); 2: 1.2.3.4 "
        "(CT, Thorax 1.0, 4 slices); choose one by its UID or number (`series`; of a data set, the "
        "column series of a CSV file)."
    )
    for series in ("1.2.3.4", "2", 2):
        np.testing.assert_array_equal(images.read(tmp_path / "scan", series).array, expected())
    assert images.read(tmp_path / "scan", "1").array.shape == (1, *SHAPE)
    with pytest.raises(UserError, match=r"has no series 3, but 1: 1.2.3.5 .* of one of them"):
        images.read(tmp_path / "scan", "3")
    told = f"{tmp_path / 'scan'}: takes the series 2: 1.2.3.4 (CT, Thorax 1.0, 4 slices)."
    assert [record.getMessage() for record in caplog.records].count(told) == 1
    # A number chooses where there are several.
    write(tmp_path / "one")
    np.testing.assert_array_equal(images.read(tmp_path / "one", "2").array, expected())
    with pytest.raises(UserError, match=r"has no series 1.2.3.5, but 1: 1.2.3.4"):
        images.read(tmp_path / "one", "1.2.3.5")


def test_a_broken_scout_does_not_count_where_another_series_is_chosen(tmp_path):
    two_series(tmp_path)
    scout = tmp_path / "scout99.dcm"
    scout.write_bytes(scout.read_bytes()[:-30])
    np.testing.assert_array_equal(images.read(tmp_path, "1.2.3.4").array, expected())
    with pytest.raises(UserError, match=r"scout99.dcm: .*ends too soon"):
        images.read(tmp_path, "1.2.3.5")


@pytest.mark.parametrize("frames", [b"nan", b"inf"])
def test_a_number_of_frames_that_is_none(tmp_path, frames):
    save(slice_of(0, NumberOfFrames="999"), tmp_path / "a.dcm")
    raw = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(raw.replace(b"IS\4\x00999", b"IS\4\0" + frames))
    assert [
        file.frames for series in dicom.series_in(tmp_path).values() for file in series.files
    ] == [1]
    for path in (tmp_path, tmp_path / "a.dcm"):
        with pytest.raises(UserError, match=r"a.dcm: "):
            images.read(path)


def test_sequences_in_sequences_without_end_are_refused(tmp_path):
    begin = b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + 5000 * begin)
    for path in (tmp_path, tmp_path / "a.dcm"):
        with pytest.raises(UserError, match=r"a.dcm: "):
            images.read(path)


def test_a_folder_without_series(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path.name}: holds 0 DICOM series; expected one"):
        images.read(tmp_path)


# Single files


def test_a_slice_alone_is_refused_where_it_is_one_of_several(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"IM97.dcm: is one of 4 slices .* give its folder"):
        images.read(tmp_path / "IM97.dcm")
    shutil.copy(tmp_path / "IM97.dcm", tmp_path / "alone")
    (tmp_path / "folder").mkdir()
    shutil.move(tmp_path / "alone", tmp_path / "folder" / "alone")
    image = images.read(tmp_path / "folder" / "alone")
    np.testing.assert_array_equal(image.array, expected((14,)))
    assert image.millimetres == (2.0, 0.75, 0.5) and image.array.dtype == np.float32


def test_slices_that_are_each_a_series_are_no_volumes(tmp_path):
    for number, z in enumerate((10, 12, 14, 16)):
        save(slice_of(z, uid=f"1.2.3.{number}"), tmp_path / f"{number}.dcm")
    told = (
        "4 DICOM files of one slice, each a series of its own; expected one SeriesInstanceUID for "
        "the slices of a volume."
    )
    for path, begin in ((tmp_path, "holds"), (tmp_path / "2.dcm", "is one of")):
        with pytest.raises(UserError) as error:
            images.read(path)
        assert str(error.value) == f"{path}: {begin} {told}"
    np.testing.assert_array_equal(images.read(tmp_path, "1.2.3.2").array, expected((14,)))
    assert images.read_2d(tmp_path / "2.dcm").array.shape == SHAPE
    for number in range(4):  # of several patients
        made = slice_of(10 + number, uid=f"1.2.3.{number}", PatientID=str(number))
        save(made, tmp_path / f"{number}.dcm")
    np.testing.assert_array_equal(images.read(tmp_path / "2.dcm").array, expected((12,)))


def test_frames_of_one_file_lie_where_each_says(tmp_path):
    save(enhanced((16, 12, 14, 10)), tmp_path / "a.dcm")
    for path in (tmp_path, tmp_path / "a.dcm"):
        image = images.read(path)
        np.testing.assert_array_equal(image.array, expected())
        assert image.millimetres == (2.0, 0.75, 0.5) and image.grid.origin == (-7, 3, 10)


@pytest.mark.parametrize("slope", [2, 0.5])
def test_frames_have_the_slope_of_their_groups(tmp_path, slope):
    save(enhanced((10, 12, 14), (slope,) * 3), tmp_path / "a.dcm")
    truth = slope * expected((10, 12, 14))
    np.testing.assert_allclose(images.read(tmp_path / "a.dcm").array, truth)


def test_frames_that_are_no_volume_are_refused(tmp_path):
    save(enhanced((10, 12, 16)), tmp_path / "a.dcm")
    with pytest.raises(UserError, match=r"a.dcm: slices 2 to 4 mm apart"):
        images.read(tmp_path / "a.dcm")
    save(enhanced((10, 12, 14), (1, 2, 3)), tmp_path / "a.dcm")
    with pytest.raises(UserError, match=r"a.dcm: its frames have 3 slopes or intercepts"):
        images.read(tmp_path / "a.dcm")


def test_run_lengths_hold_every_frame(tmp_path):
    made = enhanced((10, 12, 14))
    made.compress(pydicom.uid.RLELossless)
    save(made, tmp_path / "a.dcm")
    np.testing.assert_array_equal(images.read(tmp_path / "a.dcm").array, expected((10, 12, 14)))
    frames = pydicom.encaps.generate_frames(made.PixelData, number_of_frames=3)
    made.PixelData = pydicom.encaps.encapsulate(list(frames)[:2])
    save(made, tmp_path / "b.dcm")
    with pytest.raises(UserError, match=r"b.dcm: cut off or damaged, 2 of 3 frames are there"):
        images.read(tmp_path / "b.dcm")


def test_a_cine_without_positions_is_no_volume(tmp_path):
    made = dataset(np.zeros((9, *SHAPE), np.uint8), kind=CINE, PixelSpacing=[1, 1])
    save(made, tmp_path / "a.dcm")
    with pytest.raises(UserError, match=r"a.dcm: the spacing is unknown: its frames tell no pos"):
        images.read(tmp_path / "a.dcm")


def test_a_grid_of_doses_has_offsets(tmp_path):
    made = slice_of(10, np.stack([stored(k) for k in range(3)]), GridFrameOffsetVector=[0, 3, 6])
    save(made, tmp_path / "a.dcm")
    assert images.read(tmp_path / "a.dcm").millimetres == (3.0, 0.75, 0.5)


# Two dimensions


def region(x=0.02, y=0.03, unit=3, kind=1):
    made = pydicom.Dataset()
    made.RegionSpatialFormat, made.RegionDataType, made.RegionFlags = kind, 1, 0
    made.PhysicalUnitsXDirection = made.PhysicalUnitsYDirection = unit
    made.PhysicalDeltaX, made.PhysicalDeltaY = x, y
    return made


@pytest.mark.parametrize(
    "tags, millimetres",
    [
        ({"PixelSpacing": [0.3, 0.2]}, (0.3, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region()]}, (0.3, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region(), region()]}, (0.3, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region(), region(x=9, unit=4, kind=3)]}, (0.3, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region(), region(x=0.05)]}, None),
        ({"SequenceOfUltrasoundRegions": [region(unit=4)]}, None),  # seconds
        ({}, None),
        ({"ImagerPixelSpacing": [0.3, 0.2]}, None),
    ],
)
@pytest.mark.parametrize("syntax", [EXPLICIT, pydicom.uid.ImplicitVRLittleEndian])
def test_pixels_of_an_ultrasound_have_the_mm_of_its_header(tmp_path, tags, millimetres, syntax):
    pixels = np.arange(30, dtype=np.uint8).reshape(SHAPE)
    save(dataset(pixels, kind=ULTRASOUND, syntax=syntax, **tags), tmp_path / "a.dcm")
    image = images.read_2d(tmp_path / "a.dcm", grey_levels=True)
    np.testing.assert_array_equal(image.array, pixels)
    assert image.millimetres == (pytest.approx(millimetres) if millimetres else None)
    assert image.spacing == pytest.approx(millimetres or (1, 1))


def test_a_result_lies_on_the_grid_of_its_picture(tmp_path):
    pixels = np.arange(30, dtype=np.uint8).reshape(SHAPE)
    made = dataset(pixels, kind=ULTRASOUND, SequenceOfUltrasoundRegions=[region()])
    save(made, tmp_path / "a.dcm")
    image = images.read_2d(tmp_path / "a.dcm")
    images.write(tmp_path / "a.nii.gz", image.like(image.array > 3))
    again = images.read_2d(tmp_path / "a.nii.gz")
    assert again.millimetres == pytest.approx((0.3, 0.2), rel=1e-6)
    images.require_same_grid(again, image)


def test_series_of_a_folder_are_told_without_reading_pixels(tmp_path, monkeypatch):
    two_series(tmp_path)
    monkeypatch.setattr(sitk, "ImageFileReader", None)
    series = dicom.series_in(tmp_path)
    assert [s.description for s in series.values()] == ["Scout", "Thorax 1.0"]
    assert [len(s.files) for s in series.values()] == [1, 4]
    assert all(isinstance(file.path, pathlib.Path) for file in series["1.2.3.4"].files)


# Commands


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A SavedModel that says where a voxel is above 1215."""
    import tensorflow as tf

    from tf_autoctx import export

    def segment(image):
        label = tf.cast(image > 1215, tf.uint8)
        return {"label": label, "probability": tf.cast(label, tf.float32)}

    directory = tmp_path_factory.mktemp("model") / "fetal_head"
    card = {"system": "fetal_head", "labels": {1: "head"}, "orientation": "LPS"}
    export.write(directory, export.Exported({"serving_default": segment}, {}, card))
    return directory


@pytest.fixture
def patients(tmp_path):
    """in/one, a series of slices with a thumbnail; in/two, a series with a scout."""
    write(tmp_path / "in" / "one", ImageOrientationPatient=[0, -1, 0, -1, 0, 0])
    sitk.WriteImage(sitk.Image([6, 5], sitk.sitkUInt8), str(tmp_path / "in" / "one" / "a.png"))
    two_series(tmp_path / "in" / "two")
    return tmp_path / "in"


def check(result, folder):
    """The label of a patient lies on the grid of the slices, in their own orientation."""
    label = sitk.ReadImage(result)
    theirs = sitk.ReadImage(
        sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), "1.2.3.4")  # as GDCM sorts them
    )
    np.testing.assert_array_equal(*(map(sitk.GetArrayFromImage, (label, theirs > 1215))))
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(label, name)(), getattr(theirs, name)(), atol=1e-6)


def commands(model):
    """{command: function of source, output and further words}, for predict and for the client."""

    @contextlib.contextmanager
    def predict():
        yield lambda *words: running.call("predict", f"--model={model}", *words)

    @contextlib.contextmanager
    def client():
        models = rest_server.Models({"fetal_head": model})
        try:
            with rest_server.Server(models) as server:
                where = ("--model=fetal_head", f"--server={server.address}")
                yield lambda *words: running.call("client", *where, *words)
        finally:
            models.close()

    return {"predict": predict, "client": client}


@pytest.mark.parametrize("command", ["predict", "client"])
def test_a_patient_of_several_series_does_not_stop_the_others(
    model, patients, tmp_path, capsys, command
):
    where = (f"--input={patients}", f"--output={tmp_path / 'out'}")
    with commands(model)[command]() as run:
        with pytest.raises(SystemExit):
            run(*where)
        told = capsys.readouterr().err
        assert "holds 2 DICOM series, 1: 1.2.3.5 (CT, Scout, 1 slice); 2: 1.2.3.4" in told
        assert "choose one by its UID or number (--series; of a data set" in told
        assert "1 of 2 images failed" in told
        check(tmp_path / "out" / "one.nii.gz", patients / "one")
        assert not (tmp_path / "out" / "two.nii.gz").exists()
        again = (f"--input={patients}", f"--output={tmp_path / 'chosen'}", "--series=2")
        run(*again)
        for name in ("one", "two"):
            check(tmp_path / "chosen" / f"{name}.nii.gz", patients / name)
        with pytest.raises(SystemExit):
            run(f"--input={patients / 'one' / 'a.png'}", f"--output={tmp_path}", "--series=2")
        assert "--series=2: " in capsys.readouterr().err


def test_a_csv_chooses_a_series(tmp_path):
    two_series(tmp_path / "scan")
    two_series(tmp_path / "other")
    label = sitk.GetImageFromArray((expected() > 1215).astype(np.uint8))
    label.SetSpacing((0.5, 0.75, 2))
    label.SetOrigin((-7, 3, 10))
    sitk.WriteImage(label, str(tmp_path / "label.nii.gz"))

    def cases(*series):
        rows = zip(("scan", "other"), ("train", "test"), series)
        rows = [f"{name},label.nii.gz,{split},{chosen}" for name, split, chosen in rows]
        (tmp_path / "cases.csv").write_text("\n".join(["image,label,split,Series", *rows]))
        return datasets.load(tmp_path / "cases.csv", seed=0)

    chosen = cases("2", "1.2.3.4")
    for case in (*chosen.train, *chosen.test):
        image, truth = datasets.read_case(case)
        np.testing.assert_array_equal(image.array, expected())
        np.testing.assert_array_equal(truth, image.array > 1215)
    with pytest.raises(UserError, match=r"holds 2 DICOM series, .*the column series of a CSV"):
        datasets.read_case(cases("", "").train[0])
    prints = [datasets.fingerprint(cases(*series)) for series in (("1", "2"), ("2", "2"), ("", ""))]
    assert len(set(prints)) == 3


def test_dicom_folders_are_cases_of_a_data_set(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / "images" / name)
        label = sitk.GetImageFromArray((expected() > 1215).astype(np.uint8))
        label.SetSpacing((0.5, 0.75, 2))
        label.SetOrigin((-7, 3, 10))
        (tmp_path / "labels").mkdir(exist_ok=True)
        sitk.WriteImage(sitk.DICOMOrient(label, "RAS"), str(tmp_path / "labels" / f"{name}.nii.gz"))
    cases = datasets.load(tmp_path, seed=0)
    for case in (*cases.train, *cases.validation):
        image, truth = datasets.read_case(case)
        np.testing.assert_array_equal(truth, image.array > 1215)
