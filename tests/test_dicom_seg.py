"""DICOM segmentation objects: what `predict` writes, opened by pydicom and highdicom.

The models are thresholds.
"""

import json
import pathlib
import warnings

import helpers
import numpy as np
import pytest
import running
import SimpleITK as sitk
import tensorflow as tf
from made_up_dicom import (
    ULTRASOUND,
    dataset,
    enhanced,
    pydicom,
    save,
    slice_of,
    stored,
)
from pydicom.sr import _concepts_dict
from scipy.spatial.transform import Rotation

import tf_autoctx
from tf_autoctx import export, metrics, shipped
from tf_autoctx.data import dicom_seg, images, labels, segment_codes
from tf_autoctx.data.segment_codes import Code
from tf_autoctx.errors import UserError
from tf_autoctx.systems.shared import origins, registry, results

highdicom = pytest.importorskip("highdicom")

FRAME = "1.2.77"
HERE = {"FrameOfReferenceUID": FRAME}
SEG = "--output_format=dicom_seg"
OBLIQUE = Rotation.from_euler("zyx", (25, -35, 50), degrees=True).as_matrix().T
# Directions of rows and columns
AXES = {
    "axial": [1, 0, 0, 0, 1, 0],
    "reversed": [0, -1, 0, -1, 0, 0],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "oblique": [float(f"{cosine:.9f}") for cosine in OBLIQUE[:2].ravel()],
}


def model(folder, segment, system="multi_organ", signature=export.VOLUME, **card):
    """A SavedModel of a function of images, whose labels are liver and left kidney."""
    card = {"system": system, "labels": {1: "liver", 3: "left kidney"}, "orientation": "LPS"} | card

    def signed(image):
        label = tf.cast(segment(image), tf.uint8)
        masks = [label == value for value in card["labels"]]
        return {"label": label, "probability": tf.cast(tf.concat(masks, -1), tf.float32)}

    export.write(folder, export.Exported({"serving_default": signed}, {}, card, signature))
    return folder


LOW, HIGH = 1112, 1315  # stored values


def two_thresholds(image):
    """1 in the first slices of a series, 3 in the last, nothing in the one between."""
    return tf.where(image > HIGH, 3, tf.where(image < LOW, 1, 0))


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    return model(tmp_path_factory.mktemp("model") / "organs", two_thresholds)


@pytest.fixture(scope="module")
def predict(organs):
    """Runs the command with a model, which is that of two organs unless it is given."""

    def run(source, output, *words, model=organs):
        where = (f"--model={model}", f"--input={source}", f"--output={output}")
        running.call("predict", *where, *words)

    return run


@pytest.fixture
def refused(predict, capsys):
    """Runs the command, which ends in one sentence: all that it printed to stderr."""

    def run(*arguments, **given):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            predict(*arguments, **given)
        error = capsys.readouterr().err
        assert ended.value.code == 1 and "Traceback" not in error
        return error

    return run


def placed(axes, count=5, step=2.0, **tags):
    """Slices along the normal of `axes`, none of them at 0."""
    normal = np.cross(axes[:3], axes[3:])
    for number in range(count):
        position = (np.array([-7, 3, 20]) + step * number * normal).round(9).tolist()
        place = {"ImageOrientationPatient": axes, "ImagePositionPatient": position}
        yield slice_of(number, stored(10 + number), **HERE | place | tags)


@pytest.fixture(scope="module")
def series(tmp_path_factory, predict):
    """in/, a folder for each kind of series; seg/ and nii/, what is predicted of them."""
    folder = tmp_path_factory.mktemp("series")
    for name, axes in AXES.items():
        for number, made in enumerate(placed(axes)):  # names run against the places
            save(made, folder / "in" / name / f"{99 - number}.dcm")
    big = {"syntax": pydicom.uid.ExplicitVRBigEndian}
    for number, made in enumerate(placed(AXES["axial"], **big)):
        save(made, folder / "in" / "big_endian" / f"{number}.dcm")
    made = enhanced((14, 10, 13, 11, 12))
    made.FrameOfReferenceUID = FRAME
    save(made, folder / "in" / "frames.dcm")
    predict(folder / "in", folder / "seg", SEG)
    predict(folder / "in", folder / "nii")
    return folder


KINDS = [*AXES, "big_endian", "frames"]


def opened(path):
    return highdicom.seg.segread(path)


def sources(folder):
    """{(SOPInstanceUID, number of the frame): (pixels, position)} of a series or its one file."""
    files = sorted(folder.iterdir()) if folder.is_dir() else [folder.with_suffix(".dcm")]
    found = {}
    for made in map(pydicom.dcmread, files):
        if "NumberOfFrames" not in made:
            position = made.ImagePositionPatient
            found[made.SOPInstanceUID, None] = made.pixel_array, position
            continue
        groups = made.PerFrameFunctionalGroupsSequence
        for number, (pixels, group) in enumerate(zip(made.pixel_array, groups), 1):
            position = group.PlanePositionSequence[0].ImagePositionPatient
            found[made.SOPInstanceUID, number] = pixels, position
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_what_its_source_says(series, kind):
    """A pixel of a frame is that of the slice to which the frame refers, by the threshold."""
    made = pydicom.dcmread(series / "seg" / f"{kind}.dcm")
    assert made.SegmentationType == "BINARY" and made.FrameOfReferenceUID == FRAME
    known, seen = sources(series / "in" / kind), set()
    for pixels, group in zip(made.pixel_array, made.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        key = source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")
        values, position = known[key]
        assert group.PlanePositionSequence[0].ImagePositionPatient == position
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(pixels, {1: values < LOW, 2: values > HIGH}[number])
        assert pixels.any()
        seen.add((number, key))
    assert len(seen) == len(made.pixel_array) == 4  # of five slices, one is empty
    (references,) = made.ReferencedSeriesSequence
    assert references.SeriesInstanceUID == "1.2.3.4"
    listed = {item.ReferencedSOPInstanceUID for item in references.ReferencedInstanceSequence}
    assert listed == {uid for uid, _ in known}


@pytest.mark.parametrize("kind", KINDS)
def test_every_voxel_is_that_of_the_nifti_label(series, kind):
    """Both lie in space as their readers say, ITK and highdicom."""
    label = sitk.ReadImage(series / "nii" / f"{kind}.nii.gz")
    volume = opened(series / "seg" / f"{kind}.dcm").get_volume(combine_segments=True)
    theirs = sitk.GetArrayFromImage(label)
    assert set(np.unique(theirs)) == {0, 1, 3}
    indices = np.argwhere(np.ones_like(theirs, bool))[:, ::-1]
    spots = [label.TransformIndexToPhysicalPoint(list(map(int, index))) for index in indices]
    places = volume.map_reference_to_indices(np.array(spots))
    np.testing.assert_allclose(places, places.round(), atol=1e-3)
    places = places.round().astype(int)
    inside = np.all((places >= 0) & (places < volume.spatial_shape), axis=1)
    ours = np.zeros(len(spots), int)
    ours[inside] = volume.array[tuple(places[inside].T)]
    np.testing.assert_array_equal(np.array([0, 1, 3])[ours], theirs.ravel())


def test_an_object_is_of_the_patient_and_by_this_model(predict, tmp_path):
    of_patient = {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": "Müller^Jörg",
        "PatientID": "P7",
        "PatientBirthDate": "19700102",
        "PatientSex": "M",
        "PatientAge": "050Y",
        "AccessionNumber": "A1",
        "StudyDate": "20200304",
        "StudyDescription": "Bauch über alles",
        "SeriesNumber": 3,
    }
    for number, made in enumerate(placed(AXES["axial"], **of_patient)):
        save(made, tmp_path / "scan" / f"{number}.dcm")
    codes = {"leber": json_of("Liver"), "left kidney": json_of("Kidney")}
    (tmp_path / "codes.json").write_text(json.dumps(codes))
    names = {1: "leber", 3: "left kidney"}
    ours = model(tmp_path / "model", two_thresholds, labels=names)
    made = []
    for out in ("one", "two"):
        predict(tmp_path / "scan", tmp_path / out, SEG, *codes_in(tmp_path), model=ours)
        made.append(pydicom.dcmread(tmp_path / out / "scan.dcm"))
    first, second = made
    kept = {name: value for name, value in of_patient.items() if name.startswith(("P", "A", "St"))}
    assert {name: first.get(name) for name in kept} == kept
    assert first.SpecificCharacterSet == "ISO_IR 192"  # UTF-8
    assert (first.StudyInstanceUID, first.FrameOfReferenceUID) == ("1.2.3", FRAME)
    assert (first.Modality, first.SeriesNumber) == ("SEG", 1003)
    assert first.SeriesDescription == "Segmentation by tf_autoctx multi_organ"
    told = (first.Manufacturer, first.ManufacturerModelName, first.SoftwareVersions)
    assert told == ("tf_autoctx", "multi_organ", tf_autoctx.__version__)
    assert [item.SegmentLabel for item in first.SegmentSequence] == list(names.values())
    for item in first.SegmentSequence:
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        (algorithm,) = item.SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmParameters == f"model={first.DeviceSerialNumber}"
    # The same model, and two objects.
    assert len(first.DeviceSerialNumber) == 64
    assert first.DeviceSerialNumber == second.DeviceSerialNumber
    uids = [(x.SOPInstanceUID, x.SeriesInstanceUID) for x in made]
    assert len({*sum(uids, ()), "1.2.3.4"}) == 5


def json_of(meaning):
    anatomy = {"value": "91723000", "scheme": "SCT", "meaning": "Anatomical Structure"}
    value = segment_codes.ANATOMICAL[meaning]
    return {"category": anatomy, "type": {"value": value, "scheme": "SCT", "meaning": meaning}}


def codes_in(folder):
    return (f"--segment_codes={folder / 'codes.json'}",)


def coded(path):
    """(category, type, modifier) of each segment of an object, as (value, scheme, meaning)."""

    def code(items):
        (item,) = items
        return item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning

    for item in pydicom.dcmread(path).SegmentSequence:
        (kind,) = item.SegmentedPropertyTypeCodeSequence
        modifier = kind.get("SegmentedPropertyTypeModifierCodeSequence")
        category = code(item.SegmentedPropertyCategoryCodeSequence)
        yield category, code([kind]), modifier and code(modifier)


def test_segments_have_the_codes_of_their_structures(series):
    anatomy = ("91723000", "SCT", "Anatomical Structure")
    left = ("7771000", "SCT", "Left")
    assert [*coded(series / "seg" / "axial.dcm")] == [
        (anatomy, ("10200004", "SCT", "Liver"), None),
        (anatomy, ("64033007", "SCT", "Kidney"), left),
    ]


def test_a_file_tells_other_codes_and_results_are_made_anew(series, predict, tmp_path, capsys):
    scan, out = series / "in" / "axial", tmp_path / "out"
    predict(scan, out, SEG)
    tumour = {
        "category": {"value": "49755003", "scheme": "SCT", "meaning": "Abnormal"},
        "type": {"value": "X1", "scheme": "99OURS", "meaning": "Tumour"},
        "modifier": {"value": "24028007", "scheme": "SCT", "meaning": "Right"},
    }
    (tmp_path / "codes.json").write_text(json.dumps({"liver": tumour, "other": tumour}))
    capsys.readouterr()
    predict(scan, out, SEG, "--resume", *codes_in(tmp_path))
    told = capsys.readouterr().out
    assert "segments: liver: Tumour (99OURS X1), Right (SCT 24028007); left kidney: Kid" in told
    assert "0 of 1 images are done already" in told
    liver, kidney = coded(out / "axial.dcm")
    assert liver == tuple(tuple(tumour[part].values()) for part in ("category", "type", "modifier"))
    assert kidney[1][2] == "Kidney"
    predict(scan, out, SEG, "--resume", *codes_in(tmp_path))
    assert "1 of 1 images are done already" in capsys.readouterr().out


def test_the_folder_of_a_model_may_hold_its_codes(series, predict, tmp_path):
    """So does that of the hippocampus, whose system calls what it segments a head."""
    told = segment_codes.read(shipped.FOLDER / "hippocampus" / segment_codes.FILE)
    assert told["head"] == segment_codes.known("hippocampus")
    ours = model(tmp_path / "model", lambda x: x > HIGH, "fetal_head", labels={1: "head"})
    for name in ("seg", "of_model", "flag"):
        if name == "of_model":
            (ours / segment_codes.FILE).write_text(json.dumps({"head": json_of("Spleen")}))
        (tmp_path / "codes.json").write_text(json.dumps({"head": json_of("Liver")}))
        words = codes_in(tmp_path) if name == "flag" else ()
        predict(series / "in" / "axial", tmp_path / name, SEG, *words, model=ours)
    kinds = [next(coded(tmp_path / name / "axial.dcm"))[1] for name in ("seg", "of_model", "flag")]
    assert [kind[2] for kind in kinds] == ["Fetal head structure", "Spleen", "Liver"]


def test_regions_overlap(series, predict, tmp_path):
    """The core lies in the whole, which the last slices have."""
    card = {
        "labels": {1: "liver", 3: "spleen"},
        "regions": {"liver": [1, 3], "spleen": [3]},
    }
    ours = model(tmp_path / "model", two_thresholds, **card)
    predict(series / "in" / "oblique", tmp_path / "out", SEG, model=ours)
    made = opened(tmp_path / "out" / "oblique.dcm")
    assert made.SegmentsOverlap == "YES"
    whole, core = np.moveaxis(made.get_volume().array, -1, 0)
    assert whole[core > 0].all() and core.sum() == 30 + 14 and whole.sum() == core.sum() + 30 + 12


def test_where_nothing_was_segmented_every_frame_is_there(series, predict, tmp_path, capfd):
    ours = model(tmp_path / "model", lambda x: x > 9999)
    predict(series / "in" / "sagittal", tmp_path / "out", SEG, model=ours)
    made = pydicom.dcmread(tmp_path / "out" / "sagittal.dcm")
    assert made.NumberOfFrames == 2 * 5 and not made.pixel_array.any()
    assert made.SegmentsOverlap == "NO" and "omit_empty_frames" not in capfd.readouterr().err


def test_probabilities_and_uncertainty_stay_nifti(series, predict, tmp_path):
    predict(series / "in" / "axial", tmp_path, SEG, "--probabilities", "--measurements")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("[!.]*.*"))
    assert found == [
        "axial.dcm",
        "measurements.csv",
        "measurements/axial.csv",
        "probabilities/left kidney/axial.nii.gz",
        "probabilities/liver/axial.nii.gz",
    ]


def test_images_of_iterations_stay_nifti(tmp_path):
    """Which have no place in a series of their own."""
    voxels = np.zeros((4, 5), np.uint8)
    once = {"rendered": voxels, "label": voxels}

    class Rendering:
        labels, regions, dimensions, iterations = {1: "head"}, metrics.NO_REGIONS, 2, 1

        def __call__(self, *_, **__):
            return {"label": voxels, "iterations": [once], "kept": 0}

    save(dataset(voxels, kind=ULTRASOUND, **HERE), tmp_path / "a.dcm")
    image = images.read_2d(tmp_path / "a.dcm")
    wanted = results.Results(
        Rendering(), tmp_path / "out", every_iteration=True, template=dicom_seg.ANY
    )
    path = str(tmp_path / "a.dcm")
    for file, result in wanted.segmented(path, image, wanted.files("a", path), False).items():
        results.write(file, result, origins.Origins(tmp_path / "out", "model"))
    found = {file.relative_to(tmp_path / "out").as_posix() for file in wanted.output.rglob("*.*")}
    assert found >= {"a.dcm", "strips/a.png", "iterations/a/00_rendered.nii.gz"}
    assert len([name for name in found if name.endswith(".dcm")]) == 1


def test_one_picture_is_one_frame(predict, refused, tmp_path):
    ours = model(tmp_path / "model", lambda x: x > 20, "renderer", export.IMAGE, labels={1: "head"})
    pixels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    for name, tags in (("a", HERE), ("b", {})):
        save(dataset(pixels, kind=ULTRASOUND, Modality="US", **tags), tmp_path / f"{name}.dcm")
    predict(tmp_path / "a.dcm", tmp_path / "out", SEG, model=ours)
    made = pydicom.dcmread(tmp_path / "out" / "a.dcm")
    np.testing.assert_array_equal(made.pixel_array.reshape(5, 6), pixels > 20)
    error = refused(tmp_path / "b.dcm", tmp_path / "none", SEG, model=ours)
    assert f"error: {tmp_path / 'b.dcm'}: has no FrameOfReferenceUID; expected one, to" in error


def test_several_channels_refer_to_the_first(tmp_path):
    for name in ("t1", "t2"):
        for number, made in enumerate(placed(AXES["axial"], uid=f"1.2.3.{name[1]}")):
            save(made, tmp_path / name / f"{number}.dcm")
    path = f"{tmp_path / 't1'},{tmp_path / 't2'}"
    image = dicom_seg.read_raw(path, 3, None, 2)
    label = np.ones(image.array.shape[:-1], np.uint8)
    dicom_seg.write(tmp_path / "a.dcm", image.like(label), path, dicom_seg.ANY, "")
    (references,) = pydicom.dcmread(tmp_path / "a.dcm").ReferencedSeriesSequence
    assert references.SeriesInstanceUID == "1.2.3.1"


# Headers that are not as they should be


def test_headers_that_our_reader_takes_are_taken(tmp_path):
    """Rounded directions, no thickness, a wrong distance, of the patient nothing but a name of one
    word, of which pydicom warns."""
    tags = {"SliceThickness": None, "PatientName": "ANONYMOUS"}
    for number, made in enumerate(placed(AXES["oblique"], **tags)):
        made.SpacingBetweenSlices = 7
        made.ImageOrientationPatient = np.round(AXES["oblique"], 4 + number).tolist()
        save(made, tmp_path / "scan" / f"{number}.dcm")
    with warnings.catch_warnings(action="error"):
        image = dicom_seg.read_raw(tmp_path / "scan", 3)
        label = image.like(np.ones(image.array.shape, np.uint8))
        dicom_seg.write(tmp_path / "a.dcm", label, tmp_path / "scan", dicom_seg.ANY, "")
    made = pydicom.dcmread(tmp_path / "a.dcm")
    (measures,) = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.SpacingBetweenSlices == pytest.approx(2, abs=1e-4)
    told = (made.PatientName, made.PatientID, made.NumberOfFrames)
    assert told == ("ANONYMOUS", "", 5)


@pytest.mark.parametrize("shared", [True, False])
def test_frames_may_each_say_how_they_lie(tmp_path, shared):
    made = enhanced((10, 12, 14))
    made.FrameOfReferenceUID = FRAME
    if not shared:
        (groups,) = made.SharedFunctionalGroupsSequence
        for frame in made.PerFrameFunctionalGroupsSequence:
            frame.PlaneOrientationSequence = groups.PlaneOrientationSequence
            frame.PixelMeasuresSequence = groups.PixelMeasuresSequence
        del groups.PlaneOrientationSequence, groups.PixelMeasuresSequence
    save(made, tmp_path / "a.dcm")
    image = dicom_seg.read_raw(tmp_path / "a.dcm", 3)
    label = image.like((image.array > 1215).astype(np.uint8))
    dicom_seg.write(tmp_path / "b.dcm", label, tmp_path / "a.dcm", dicom_seg.ANY, "")
    volume = opened(tmp_path / "b.dcm").get_volume()
    assert volume.spacing == (2, 0.75, 0.5) and volume.array.sum() == 30 + 14


def test_frames_by_offsets_are_refused(tmp_path):
    """As of doses, whose object would have the first frame alone."""
    frames = np.stack([stored(k) for k in range(3)])
    save(slice_of(10, frames, GridFrameOffsetVector=[0, 3, 6], **HERE), tmp_path / "a.dcm")
    assert images.read(tmp_path / "a.dcm").array.shape == (3, 5, 6)
    with pytest.raises(UserError, match=r"a.dcm: 1 of 3 frames tell a position of their own; exp"):
        dicom_seg.read_raw(tmp_path / "a.dcm", 3)


REFUSED = {
    "no frame of reference": (
        {"FrameOfReferenceUID": None},
        "has no FrameOfReferenceUID; expected one, to which a DICOM segmentation refers, or another"
        " --output_format.",
    ),
    "no study": ({"StudyInstanceUID": None}, "has no StudyInstanceUID; expected one"),
    "another study": ({"StudyInstanceUID": "1.2.9"}, "no DICOM segmentation can refer to it (So"),
    "sex": ({"PatientSex": "X"}, "no DICOM segmentation can refer to it ('X' is not a valid"),
    "no class": ({"SOPClassUID": None}, "has no SOPClassUID; expected one"),
}


@pytest.mark.parametrize("tags, told", REFUSED.values(), ids=REFUSED)
def test_a_header_that_does_not_do_is_refused_before_anything_is_computed(
    refused, predict, tmp_path, monkeypatch, tags, told
):
    """The others of a folder are done."""
    good, bad = [*placed(AXES["axial"])], [*placed(AXES["axial"], **tags)]
    for number, made in enumerate(good):
        save(made, tmp_path / "in" / "good" / f"{number}.dcm")
        save(made if number else bad[0], tmp_path / "in" / "bad" / f"{number}.dcm")
    segmented = []

    def noted(self, path, *arguments):
        segmented.append(pathlib.Path(path).name)
        return segment(self, path, *arguments)

    segment = results.Results.segmented
    monkeypatch.setattr(results.Results, "segmented", noted)
    error = refused(tmp_path / "in", tmp_path / "out", SEG)
    assert told in error and "1 of 2 images failed" in error
    assert segmented == ["good"]
    assert [path.name for path in (tmp_path / "out").glob("*.dcm")] == ["good.dcm"]


def test_images_that_are_no_dicom_are_refused_at_once(refused, series, tmp_path):
    scan = sitk.ReadImage(series / "nii" / "axial.nii.gz")
    (tmp_path / "in").mkdir()
    images.write(tmp_path / "in" / "a.nii.gz", scan)
    error = refused(tmp_path / "in", tmp_path / "out", SEG)
    assert error == (
        f"error: {tmp_path / 'in' / 'a.nii.gz'}: is no DICOM file; expected one, or a DICOM folder,"
        " to which a segmentation refers, or another --output_format.\n"
    )
    assert not (tmp_path / "out").exists()


def test_structures_without_a_code_are_named(refused, series, tmp_path):
    ours = model(tmp_path / "model", two_thresholds, labels={1: "liver", 2: "cyst", 3: "tumour"})
    error = refused(series / "in", tmp_path / "out", SEG, model=ours)
    assert error == (
        "error: --segment_codes: no code is known for cyst, tumour; expected a JSON file of "
        "category and type of each.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a\\b", 65 * "a", "a\nb"])
def test_structures_of_names_that_dicom_cannot_hold(name):
    with pytest.raises(UserError, match=r"a structure is called '.*'; expected at most 64 letters"):
        dicom_seg.Segment(name, (1,), segment_codes.known("liver"))


@pytest.mark.parametrize(
    "words, told",
    [
        (["--segment_codes=a.json"], "--segment_codes: images hold no codes; expected --output_f"),
        ([SEG, "--masks"], "--masks: of --output_format=dicom_seg each structure is a segment"),
        ([SEG, "--segment_codes=none.json"], "none.json: no such file or directory; expected a"),
    ],
)
def test_flags_that_do_not_go_together(refused, series, tmp_path, words, told):
    assert f"error: {told}" in refused(series / "in", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_the_extra_is_asked_for(refused, series, tmp_path, monkeypatch):
    find = dicom_seg.importlib.util.find_spec

    def absent(name, *arguments):
        return None if name == "highdicom" else find(name, *arguments)

    monkeypatch.setattr(dicom_seg.importlib.util, "find_spec", absent)
    assert refused(series / "in", tmp_path / "out", SEG) == (
        "error: --output_format=dicom_seg: highdicom is not installed; run pip install "
        "'tf_autoctx[dicom]', or choose another format.\n"
    )


def test_neither_help_nor_reading_a_volume_imports_highdicom():
    code = "import tf_autoctx.systems.shared.results, tf_autoctx.commands.predict"
    assert not {"highdicom", "pydicom"} & helpers.modules_after(code)


def test_objects_are_no_images(series):
    """ITK makes bytes of their bits that nobody wrote."""
    for read in (images.read, images.read_2d, lambda path: labels.read(path, 3)):
        with pytest.raises(UserError, match=r"axial.dcm: has one bit a voxel, as DICOM segm"):
            read(series / "seg" / "axial.dcm")


# Codes


@pytest.mark.parametrize("meaning, value", segment_codes.ANATOMICAL.items())
def test_codes_are_those_that_dicom_lists_for_segments(meaning, value):
    listed = {
        (code, told)
        for codes in _concepts_dict.concepts["SCT"].values()
        for code, (told, groups) in codes.items()
        if 7151 in groups  # of segmented property types
    }
    assert (value, meaning) in listed


def test_codes_of_embryo_and_ventricle():
    told, head, of_renderer = (
        registry.find(name, "here").segment_codes for name in ("embryo", "fetal_head", "renderer")
    )
    assert told["body"].type == Code("57991002", "SCT", "Entire embryo")
    ventricles = _concepts_dict.concepts["SCT"]["BrainVentricle"]
    assert told["ventricle"].type[0] in ventricles
    assert head == of_renderer and head["head"].type.value == "54527006"


@pytest.mark.parametrize(
    "name, told",
    [
        ("Liver", "Liver (SCT 10200004)"),
        ("gall_bladder", "Gallbladder (SCT 28231008)"),
        ("right parotid", "Parotid gland (SCT 45289007), Right (SCT 24028007)"),
        ("kidney-left", "Kidney (SCT 64033007), Left (SCT 7771000)"),
        ("brainstem", "Brain Stem (SCT 119238007)"),
        ("left liver", "None"),
        ("left right kidney", "None"),
        ("left", "None"),
        ("head", "None"),  # of what?
        ("liver tumour", "None"),
    ],
)
def test_names_that_are_known(name, told):
    assert str(segment_codes.known(name)) == told


LIVER = json_of("Liver")
BAD = {
    "no object": ([1], "holds no structures; expected a JSON object of them by name"),
    "no parts": ({"liver": 7}, "liver has no parts; expected category and type"),
    "no category": ({"liver": {"type": LIVER["type"]}}, "liver has type; expected category and"),
    "another part": ({"liver": {**LIVER, "colour": 1}}, "liver has category, colour, type; expect"),
    "a text": ({"liver": {**LIVER, "type": "liver"}}, "type of liver is 'liver'; expected an obj"),
    "no meaning": ({"liver": {**LIVER, "type": {"value": "1", "scheme": "SCT"}}}, "type of liver"),
    "a number": ({"liver": {**LIVER, "modifier": {**LIVER["type"], "value": 7}}}, "modifier of li"),
    "empty": ({"liver": {**LIVER, "type": {**LIVER["type"], "value": " "}}}, "type of liver is"),
    "too long": (
        {"liver": {**LIVER, "category": {**LIVER["type"], "scheme": 17 * "S"}}},
        r"category of liver is .* value \(64\), scheme \(16\), meaning \(64\)",
    ),
}


@pytest.mark.parametrize("told, error", BAD.values(), ids=BAD)
def test_files_of_codes_that_are_none(tmp_path, told, error):
    (tmp_path / "codes.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=f"codes.json: {error}"):
        segment_codes.read(tmp_path / "codes.json")
