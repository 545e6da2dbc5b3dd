"""Names of cases: one rule for data sets, predictions and scores."""

import json

import pytest
import SimpleITK as sitk

from tf_autoctx.data import names
from tf_autoctx.errors import UserError


def touch(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def write_series(folder, slices=3, uid="1.2.3.4", suffix=".dcm"):
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(slices):
        piece = sitk.JoinSeries([sitk.Image([6, 5], sitk.sitkInt16)])
        tags = {"0008|0018": f"{uid}.{z + 1}", "0020|000d": "1.2.3", "0020|000e": uid}
        for tag, value in {**tags, "0020|0032": f"0\\0\\{z}"}.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}_{z}.dcm"))
        writer.Execute(piece)
        (folder / f"{uid}_{z}.dcm").rename(folder / f"{uid}_{z}{suffix}")


@pytest.mark.parametrize(
    "file, expected",
    [
        ("case_1.nii.gz", "case_1"),
        ("a.b.NRRD", "a.b"),
        ("case_99_0000.nii.gz", "case_99"),
        ("case_99_0001.nii.gz", "case_99_0001"),
        ("case_00000.nii.gz", "case_00000"),  # KiTS
        ("0000.png", "0000"),
        ("_0000.png", "_0000"),
        ("notes", "notes"),
    ],
)
def test_a_lone_file(tmp_path, file, expected):
    assert names.case_name(tmp_path / file) == expected  # also where it is not there
    touch(tmp_path, file)
    assert names.case_name(tmp_path / file) == expected
    if file != "notes":
        assert names.find(tmp_path) == {expected: str(tmp_path / file)}
    assert names.of_data_set([tmp_path / file]) == [expected]


@pytest.mark.parametrize(
    "files, expected",
    [
        (["a_0000.nrrd", "b_0000.nrrd", "._c_0001.nrrd", "notes.txt"], ["a", "b"]),
        (["scan_0000.png", "scan_0001.png"], ["scan_0000", "scan_0001"]),  # frames
        (["a_0000.nrrd", "a.nrrd"], ["a", "a_0000"]),  # an image beside its label
    ],
)
def test_all_files_of_a_folder_decide_whether_they_are_nnunets(tmp_path, files, expected):
    touch(tmp_path, *files)
    found = names.find(tmp_path)
    assert list(found) == expected
    assert {names.case_name(path): path for path in found.values()} == found  # a file alone
    assert names.of_data_set(list(found.values())) == expected


def test_a_dataset_json_says_that_files_are_channels(tmp_path):
    touch(tmp_path, "imagesTs/a_0000.nrrd", "imagesTs/b.nrrd")
    assert list(names.find(tmp_path / "imagesTs")) == ["a_0000", "b"]
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}}))
    assert list(names.find(tmp_path / "imagesTs")) == ["a", "b"]
    touch(tmp_path, "imagesTs/a_0001.nrrd")
    for call in (names.find, lambda folder: names.case_name(folder / "a_0001.nrrd")):
        with pytest.raises(UserError, match=r"a_0001.nrrd: is not a first channel; expected one"):
            call(tmp_path / "imagesTs")


def test_a_dataset_json_that_is_none_says_nothing_of_channels(tmp_path):
    (tmp_path / "dataset.json").write_text("[" * 200_000)
    touch(tmp_path, "imagesTs/a_0000.nrrd", "imagesTs/b.nrrd")
    assert list(names.find(tmp_path / "imagesTs")) == ["a_0000", "b"]


def test_names_below_hold_their_folders(tmp_path):
    touch(tmp_path, "s0000/ct.nii.gz", "s0001/ct.nii.gz", "x/y/a_0000.png", "b.nrrd")
    assert list(names.find(tmp_path, below=True)) == ["b", "s0000/ct", "s0001/ct", "x/y/a"]
    assert list(names.find(tmp_path)) == ["b"]
    without = names.find(tmp_path, below=True, without=tmp_path / "x", skip=["s0000"])
    assert list(without) == ["b", "s0001/ct"]


@pytest.mark.parametrize(
    "files, expected",
    [
        (["s0000/ct.nii.gz", "s0001/ct.nii.gz"], ["s0000", "s0001"]),
        (["k/case_0/image.nii.gz", "k/case_1/image.nii.gz"], ["case_0", "case_1"]),
        (["a/1/ct.nrrd", "a/2/ct.nrrd", "b/1/ct.nrrd"], ["a_1", "a_2", "b_1"]),
        (["a/x.nrrd", "b/x.nrrd", "c/y.nrrd"], ["a_x", "b_x", "c_y"]),
        (["x.nrrd", "b/x.nrrd"], ["x", "b_x"]),
        (["a/x.nrrd", "b/y.nrrd"], ["x", "y"]),
        (["a/x.nrrd", "a/x.mha"], ["x", "x"]),  # refused later on
    ],
)  # fmt: skip
def test_names_in_a_data_set_differ(tmp_path, files, expected):
    touch(tmp_path, *files)
    assert names.of_data_set([tmp_path / file for file in files]) == expected


def test_a_dicom_folder_is_one_image_whatever_lies_in_it(tmp_path, caplog):
    write_series(tmp_path / "p1.0")
    write_series(tmp_path / "p1.0", 1, "1.2.9")  # a scout
    touch(tmp_path, "p1.0/thumb.png", "p1.0/notes.txt", "p1.0/DICOMDIR")
    write_series(tmp_path / "p2", suffix="")
    write_series(tmp_path / "p3", 1, suffix="")
    write_series(tmp_path / "p4", 1)
    write_series(tmp_path / "p5", 1, "1.2.5", suffix=".ima")
    write_series(tmp_path / "p5", 1, "1.2.6", suffix=".ima")
    found = names.find(tmp_path, below=True)
    assert list(found) == ["p1.0", "p2", "p3", "p4/1.2.3.4_0", "p5/1.2.5_0.ima", "p5/1.2.6_0.ima"]
    assert found["p1.0"] == str(tmp_path / "p1.0") and "1 pictures" in caplog.text
    assert names.find(tmp_path / "p2") == {"p2": str(tmp_path / "p2")}
    assert names.case_name(tmp_path / "p1.0") == "p1.0"
    assert len(names.find(tmp_path / "p2", series=False)) == 3
    touch(tmp_path, "p2/volume.nrrd")
    assert list(names.find(tmp_path / "p2")) == ["p2", "volume"]


def test_one_series_in_two_folders_is_refused(tmp_path):
    write_series(tmp_path / "a", 5)
    (tmp_path / "b").mkdir()
    for z in (3, 4):  # as archives export a few files a folder
        (tmp_path / "a" / f"1.2.3.4_{z}.dcm").rename(tmp_path / "b" / f"{z}.dcm")
    with pytest.raises(UserError) as error:
        names.find(tmp_path, below=True)
    first, second = ("a", "b") if str(error.value).startswith(f"{tmp_path}/b") else ("b", "a")
    assert str(error.value) == (
        f"{tmp_path / second}: holds slices of the DICOM series 1.2.3.4, as {tmp_path / first} "
        "does; expected all slices of a series in one folder."
    )
    assert len(names.find(tmp_path, series=False, below=True)) == 5  # pictures


def test_slices_that_are_each_a_series_are_one_folder(tmp_path):
    """Of random UIDs: reading the folder tells."""
    for z in range(3):
        write_series(tmp_path / "a", z + 1, f"1.2.{z}")
        for earlier in range(z):
            (tmp_path / "a" / f"1.2.{z}_{earlier}.dcm").unlink()
    write_series(tmp_path / "b")
    assert list(names.find(tmp_path, below=True)) == ["a", "b"]


def test_what_is_wrong_with_a_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; expected a folder of images"):
        names.find(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no image; expected files that end in .nii.gz"):
        names.find(touch(tmp_path, "notes.txt"))
    with pytest.raises(UserError, match="is the folder of the input images; expected another"):
        names.find(tmp_path, without=tmp_path)
    with pytest.raises(UserError, match=r"a.nrrd: has the same name as .*a.nii.gz; expected one"):
        names.find(touch(tmp_path, "a.nii.gz", "a.nrrd"))


@pytest.mark.parametrize(
    "images, labels",
    [
        (["a", "b"], ["a", "b"]),
        (["s0/ct", "s1/ct"], ["s0/ct", "s1/ct"]),
        (["s0/ct", "s1/ct"], ["s0/seg", "s1/truth"]),
        (["s0/ct", "s1/ct"], ["s0", "s1"]),
        (["s0", "s1"], ["s0/ct", "s1/ct"]),
    ],
)
def test_images_go_with_labels(images, labels):
    pairs = names.pairs({n: f"i/{n}" for n in images}, {n: f"l/{n}" for n in labels})
    assert pairs == {n: (f"i/{n}", f"l/{m}") for n, m in zip(images, labels)}


@pytest.mark.parametrize(
    "images, labels, told",
    [
        (["a", "b"], ["a"], "i/b: no image of the same name in the other folder"),
        (["a"], ["a", "b"], "l/b: no image"),
        (["s0/a", "s0/b"], ["s0/c", "s0/d"], "i/s0/a, i/s0/b, l/s0/c, l/s0/d: no image"),
        (["s0/a"], ["s1/a"], "i/s0/a, l/s1/a: no image"),
        (list(map(str, range(30))), ["0"], "and 9 more: no image"),
    ],
)
def test_what_has_no_counterpart_is_named(images, labels, told):
    with pytest.raises(UserError, match=told):
        names.pairs({n: f"i/{n}" for n in images}, {n: f"l/{n}" for n in labels})


def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path / "elsewhere" / "b", "ct.nrrd")
    touch(tmp_path / "in" / "a", "ct.nrrd")
    (tmp_path / "in" / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "in" / "a" / "up").symlink_to(tmp_path / "in")  # no end
    (tmp_path / "in" / "0").symlink_to(tmp_path / "in" / "a")
    assert list(names.find(tmp_path / "in", below=True)) == ["a/ct", "b/ct"]


def test_files_of_formats_that_are_not_read_get_a_warning(tmp_path, caplog):
    touch(tmp_path, "a.nrrd", "b.bmp", "c.MGZ", "d.json", "e.nii.gz.txt")
    assert list(names.find(tmp_path)) == ["a"]
    assert "2 files of formats that are not read are left out, such as " in caplog.text
