import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from tf_autoctx.data import datasets
from tf_autoctx.errors import UserError

LABELS = {0: "background", 1: "left", 2: "right"}


def write_image(path, shape=(3, 4, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(
        sitk.GetImageFromArray(np.arange(np.prod(shape), dtype=np.float32).reshape(shape)),
        str(path),
    )


def write_label(path, values=(1, 2), dtype=np.uint8):
    """Zeros but for the first voxels, which hold `values`."""
    voxels = np.zeros((3, 4, 5), dtype)
    voxels.flat[: len(values)] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))


def decathlon(folder, train=("c", "a", "b"), **changes):
    """A Decathlon folder; the test images are listed as paths, and only `d` has a label."""
    for name in train:
        write_image(folder / f"imagesTr/{name}.nii.gz")
        write_label(folder / f"labelsTr/{name}.nii.gz")
    for name in "ed":
        write_image(folder / f"imagesTs/{name}.nii.gz")
    write_label(folder / "labelsTs/d.nii.gz")
    description = {
        "modality": {"0": "MRI"},
        "labels": {str(value): name for value, name in LABELS.items()},
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in train
        ],
        "test": [f"./imagesTs/{n}.nii.gz" for n in "ed"],
    }
    return describe(folder, description | changes)


def nnunet(folder, **changes):
    """The same cases as an nnU-Net folder of NRRD files."""
    for name in "abc":
        write_image(folder / f"imagesTr/{name}_0000.nrrd")
        write_label(folder / f"labelsTr/{name}.nrrd")
    for name in "de":
        write_image(folder / f"imagesTs/{name}_0000.nrrd")
    write_label(folder / "labelsTs/d.nrrd")
    labels = {name: value for value, name in LABELS.items()}
    return describe(
        folder, {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nrrd"} | changes
    )


def describe(folder, description):
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(
        json.dumps({k: v for k, v in description.items() if v is not None})
    )
    return folder


def table(folder, *rows, header="image,label,split,group"):
    """A CSV file whose images and labels exist."""
    folder.mkdir(exist_ok=True)
    for row in rows:
        image, label = row.split(",")[:2]
        for name in filter(None, (image, label)):
            (folder / name).touch()
    (folder / "cases.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return folder / "cases.csv"


def names(cases):
    return [case.name for case in cases]


@pytest.mark.parametrize("make", [decathlon, nnunet])
def test_a_folder_gives_its_cases_by_split(tmp_path, make):
    data = datasets.load(make(tmp_path / "set"), seed=0)
    assert data.name == "set" and data.labels == LABELS
    assert sorted(names(data.train) + names(data.validation)) == ["a", "b", "c"]
    assert len(data.validation) == 1
    assert [(case.name, case.label is not None) for case in data.test] == [
        ("d", True),
        ("e", False),
    ]
    for case in data.train:
        image, label = datasets.read_case(case, labels=data.labels)
        assert image.image.GetSize() == (5, 4, 3)
        assert label.dtype == np.uint8 and label.shape == (3, 4, 5) and label.sum() == 2


def test_a_test_case_may_be_listed_with_its_label(tmp_path):
    listed = {"image": "imagesTs/e.nii.gz", "label": "labelsTs/d.nii.gz"}
    (case,) = datasets.load(decathlon(tmp_path, test=[listed]), seed=0).test
    assert case == datasets.Case(
        "e", str(tmp_path / listed["image"]), str(tmp_path / listed["label"]), "e"
    )


def test_a_csv_gives_the_splits_it_states(tmp_path):
    rows = [
        "b.png,bl.png,train,p",
        "a.png,al.png,train,q",
        "v.png,vl.png,validation,r",
        "t.png,,test,",
    ]
    data = datasets.load(table(tmp_path / "set", *rows), seed=0)
    assert (names(data.train), names(data.validation), names(data.test)) == (
        ["a", "b"],
        ["v"],
        ["t"],
    )
    assert data.train[0] == datasets.Case(
        "a", str(tmp_path / "set/a.png"), str(tmp_path / "set/al.png"), "q"
    )
    assert data.test[0].label is None and data.test[0].group == "t"
    assert data.labels == {}


def test_a_csv_from_excel_without_groups_is_read(tmp_path):
    path = table(
        tmp_path, "a.png,al.png,train", "b.png,bl.png,train", header="\ufeffimage,label,split"
    )
    data = datasets.load(path, seed=0)
    assert {case.group for case in data.train + data.validation} == {"a", "b"}


def test_the_split_depends_on_the_seed_and_not_on_the_order(tmp_path):
    rows = [f"i{k}.png,l{k}.png,train," for k in range(20)]
    data = datasets.load(table(tmp_path / "one", *rows), seed=3)
    assert len(data.validation) == 4
    assert names(data.validation) == sorted(names(data.validation))
    again = datasets.load(table(tmp_path / "two", *reversed(rows)), seed=3)
    assert names(again.validation) == names(data.validation) and names(again.train) == names(
        data.train
    )
    splits = {
        tuple(names(datasets.load(tmp_path / "one/cases.csv", seed).validation))
        for seed in range(5)
    }
    assert len(splits) > 1


@pytest.mark.parametrize("fraction, expected", [(0.01, 1), (0.3, 3), (0.99, 9)])
def test_groups_stay_whole_and_each_side_has_one(tmp_path, fraction, expected):
    path = table(tmp_path, *[f"i{k}.png,l{k}.png,train,patient{k % 10}" for k in range(30)])
    for seed in range(5):
        data = datasets.load(path, seed, fraction)
        train, validation = (
            {case.group for case in cases} for cases in (data.train, data.validation)
        )
        assert len(validation) == expected and not train & validation
        assert len(data.validation) == 3 * expected and len(data.train) == 30 - 3 * expected


def test_a_single_case_validates_on_itself_with_a_warning(tmp_path, caplog):
    data = datasets.load(decathlon(tmp_path, train=["a"]), seed=0)
    assert names(data.train) == names(data.validation) == ["a"]
    assert "one group, a, which also validates" in caplog.text


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"labels": None}, "lacks the key 'labels'; expected"),
        (
            {"training": None},
            r"lacks 'training' \(Decathlon\) and 'channel_names' \(nnU-Net\); expected one",
        ),
        ({"labels": ["left"]}, r"has the labels \['left'\]; expected a whole number and a name"),
        (
            {"labels": {"left": [1, "a"]}},
            r"regions=left=1\+a: expected name=value",
        ),
        ({"labels": {"left": 1.5}}, r"has the labels {'left': 1.5}; expected a whole number"),
        (
            {"labels": {"left": 1, "right": 1}},
            ".*expected each value once, and 0 for the background",
        ),
        ({"labels": {"background": 2, "left": 1}}, ".*expected each value once, and 0 for the"),
        (
            {"training": ["imagesTr/a.nii.gz"]},
            "training image .*a.nii.gz has no label; expected one in labelsTr",
        ),
        ({"training": [{"label": "x"}]}, "'training' lists {'label': 'x'}; expected a path"),
        (
            {"training": [{"image": "x.nii.gz", "label": "y"}]},
            "lists .*x.nii.gz, which does not exist; expected a",
        ),
        ({"modality": 3}, "an entry is of another kind"),
        ({"training": [{"image": "imagesTr/a.nii.gz", "label": 3}]}, "an entry is of another kind"),
        ({"test": ["x.nii.gz"]}, "lists .*x.nii.gz, which does not exist; expected a file"),
    ],
)
def test_a_bad_dataset_json_is_named(tmp_path, change, sentence):
    with pytest.raises(UserError, match=f"dataset.json: {sentence}"):
        datasets.load(decathlon(tmp_path, **change), seed=0)


def test_a_key_twice_in_a_dataset_json_is_named(tmp_path):
    path = decathlon(tmp_path) / "dataset.json"
    path.write_text('{"training": [], "labels": {"left": 1, "ignore": 2, "ignore": 3}}')
    with pytest.raises(UserError, match=r"dataset.json: is not JSON \(it has the key 'ignore' tw"):
        datasets.load(tmp_path, seed=0)


def test_a_structure_of_0_gets_a_warning(tmp_path, caplog):
    datasets.load(decathlon(tmp_path / "a", labels={"0": "Background", "1": "left"}), seed=0)
    assert "label 0" not in caplog.text
    datasets.load(decathlon(tmp_path / "b", labels={"0": "liver", "1": "left"}), seed=0)
    assert "label 0 is called 'liver'; it is taken for the background" in caplog.text


def test_a_dataset_json_that_is_not_json_is_named(tmp_path):
    for text, reason in (
        ("{", "Expecting"),
        ("[" * 200_000, "nested too deeply"),
        ("ä", "'utf-8'"),
    ):
        (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError) as error:
            datasets.load(tmp_path, seed=0)
        told = str(error.value)
        assert told.startswith(f"{tmp_path / 'dataset.json'}: is not JSON ({reason}")
        assert told.endswith("; expected a data set's description.")


@pytest.mark.parametrize("value", ["Infinity", "NaN", "1e999", "1" + 400 * "0"])
def test_a_label_value_that_is_no_whole_number_is_named(tmp_path, value):
    path = decathlon(tmp_path) / "dataset.json"
    path.write_text(f'{{"training": [], "labels": {{"left": {value}}}}}')
    with pytest.raises(
        UserError, match=r"dataset.json: has the labels .*; expected a whole number"
    ):
        datasets.load(tmp_path, seed=0)


def test_what_is_no_data_set_is_named(tmp_path):
    with pytest.raises(
        UserError, match="nowhere: no such file or folder; expected a data set folder or a CSV"
    ):
        datasets.load(tmp_path / "nowhere", seed=0)
    with pytest.raises(UserError, match=f"{tmp_path.name}: has no dataset.json; expected"):
        datasets.load(tmp_path, seed=0)
    write_image(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"a.nii.gz: is not a text file; expected a CSV file"):
        datasets.load(tmp_path / "a.nii.gz", seed=0)


@pytest.mark.parametrize("channel", ["a_0001.nrrd", "plain.nrrd"])
def test_an_nnunet_folder_has_one_channel(tmp_path, channel):
    write_image(nnunet(tmp_path) / "imagesTr" / channel)
    with pytest.raises(
        UserError, match=f"{channel}: is not a first channel; expected .*_0000.nrrd"
    ):
        datasets.load(tmp_path, seed=0)


def test_an_nnunet_image_needs_its_label(tmp_path):
    (nnunet(tmp_path) / "labelsTr/b.nrrd").unlink()
    with pytest.raises(
        UserError, match=r"training image .*b_0000.nrrd has no label; expected one in labelsTr"
    ):
        datasets.load(tmp_path, seed=0)


@pytest.mark.parametrize(
    "make", [lambda path: decathlon(path, train=()), lambda path: table(path, "a.png,,test,")]
)
def test_a_data_set_without_training_cases_is_refused(tmp_path, make):
    with pytest.raises(UserError, match="holds no training case; expected at least one"):
        datasets.load(make(tmp_path), seed=0)


@pytest.mark.parametrize(
    "row, sentence",
    [
        (
            "b.png,bl.png,holdout,",
            "cases.csv, line 3: unknown split 'holdout'; expected train, validation or test",
        ),
        ("b.png,,train,", "cases.csv, line 3: has no label; expected a path"),
        (",bl.png,train,", "cases.csv, line 3: has no image; expected a path"),
        (
            "b.png,bl.png,test,p",
            "cases.csv, line 3: group 'p' is in test and train; expected it in one split",
        ),
        (
            "./a.png,bl.png,train,",
            "a.png in train has the image of .*a.png in train; expected every case once",
        ),
        (
            "a.png,,test,",
            "a.png in test has the image of .*a.png in train; expected every case once",
        ),
        (
            "a.nrrd,bl.png,train,",
            "a.nrrd in train has the name of .*a.png in train; expected every case once",
        ),
    ],
)
def test_a_bad_csv_row_is_named(tmp_path, row, sentence):
    with pytest.raises(UserError, match=sentence):
        datasets.load(table(tmp_path, "a.png,al.png,train,p", row), seed=0)


def test_a_series_is_of_a_dicom_folder(tmp_path):
    path = table(tmp_path, "a.png,al.png,train,2", header="image,label,split,series")
    with pytest.raises(UserError) as error:
        datasets.load(path, seed=0)
    assert str(error.value) == (
        f"{path}, line 2: has the series '2' of a file, a.png; expected a DICOM folder."
    )


def test_the_same_image_behind_a_link_is_found(tmp_path):
    (tmp_path / "b.png").symlink_to("a.png")
    with pytest.raises(
        UserError,
        match=r"b.png in test has the image of .*a.png in train; expected every case once",
    ):
        datasets.load(table(tmp_path, "a.png,al.png,train,", "b.png,,test,"), seed=0)


def test_a_csv_with_missing_columns_or_files_is_named(tmp_path):
    with pytest.raises(
        UserError,
        match=r"cases.csv: lacks \['label', 'split'\] among \['image', 'mask'\]; expected",
    ):
        datasets.load(table(tmp_path, header="image,mask"), seed=0)

    path = table(tmp_path, "a.png,al.png,train,")
    (tmp_path / "al.png").unlink()
    with pytest.raises(
        UserError, match=r"cases.csv, line 2: lists .*al.png, which does not exist; expected a file"
    ):
        datasets.load(path, seed=0)


def case(folder, label=True):
    write_image(folder / "i.nrrd")
    return datasets.Case(
        "i", str(folder / "i.nrrd"), str(folder / "l.nrrd") if label else None, "i"
    )


@pytest.mark.parametrize(
    "foreground, expected", [(None, [1, 1, 1, 0]), ((1,), [1, 0, 0, 0]), ((1, 7), [1, 0, 1, 0])]
)
def test_foreground_values_merge_into_one_object(tmp_path, foreground, expected):
    write_label(tmp_path / "l.nrrd", values=(1, 2, 7))
    image, label = datasets.read_case(case(tmp_path), foreground)
    assert image.array[0, 0, :3].tolist() == [0, 1, 2]
    assert label.ravel()[:4].tolist() == expected and label.sum() == sum(expected)


def test_an_unlabelled_case_has_no_label(tmp_path):
    assert datasets.read_case(case(tmp_path, label=False))[1] is None


@pytest.mark.parametrize(
    "values, dtype, options, sentence",
    [
        (
            (1, 7),
            np.uint8,
            {"labels": LABELS},
            r"has the label values \[7\]; expected one of \[0, 1, 2\]",
        ),
        ((1, 0.5), np.float32, {}, r"has the label values \[0.5\]; expected whole numbers"),
        (
            (),
            np.uint8,
            {},
            r"the object is missing, the values are \[0\]; expected a value other than 0",
        ),
        (
            (1,),
            np.uint8,
            {"foreground": (2, 3)},
            r"the object is missing, .* \[0, 1\]; expected one of \[2, 3\]",
        ),
    ],
)
def test_a_bad_label_is_named(tmp_path, values, dtype, options, sentence):
    write_label(tmp_path / "l.nrrd", values, dtype)
    with pytest.raises(UserError, match=f"l.nrrd: {sentence}"):
        datasets.read_case(case(tmp_path), **options)


def test_a_label_on_another_grid_is_named(tmp_path):
    write_image(tmp_path / "l.nrrd", shape=(3, 4, 4))
    with pytest.raises(
        UserError, match=r"l.nrrd: size \(4, 4, 3\) voxels does not match \(5, 4, 3\)"
    ):
        datasets.read_case(case(tmp_path))


def test_a_constant_image_is_named(tmp_path):
    constant = case(tmp_path, label=False)
    sitk.WriteImage(sitk.Image([5, 4, 3], sitk.sitkInt16) + 9, constant.image)
    with pytest.raises(UserError, match=r"i.nrrd: every voxel is 9; expected varying intensities"):
        datasets.read_case(constant)


def test_the_fingerprint_follows_the_voxels_and_not_the_folder(tmp_path):
    original = datasets.fingerprint(datasets.load(decathlon(tmp_path / "set"), seed=0))
    assert len(original) == 64
    shutil.copytree(tmp_path / "set", tmp_path / "moved")
    assert datasets.fingerprint(datasets.load(tmp_path / "moved", seed=0)) == original
    write_label(tmp_path / "moved/labelsTr/b.nii.gz", values=(1, 1))
    assert datasets.fingerprint(datasets.load(tmp_path / "moved", seed=0)) != original


def test_the_fingerprint_follows_the_split_and_the_slices_of_a_series(tmp_path):
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan/1.dcm").write_text("one")
    scan = datasets.Case("scan", str(tmp_path / "scan"), None, "scan")
    before = datasets.fingerprint(datasets.Dataset("set", (scan,), (), (), {}))
    assert datasets.fingerprint(datasets.Dataset("set", (), (), (scan,), {})) != before
    (tmp_path / "scan/1.dcm").write_text("two")
    assert datasets.fingerprint(datasets.Dataset("set", (scan,), (), (), {})) != before


DETACHED = {
    "a.mhd": "NDims = 1\nDimSize = 4\nElementType = MET_UCHAR\nElementDataFile = voxels.raw\n",
    "a.nhdr": "NRRD0004\ntype: uint8\ndimension: 1\nsizes: 4\nencoding: raw\n"
    "data file: voxels.raw\n",
}


@pytest.mark.parametrize("name", DETACHED)
def test_voxels_beside_a_header_are_of_the_image(tmp_path, caplog, name):
    def scan(patient, voxels):
        (tmp_path / patient).mkdir(exist_ok=True)
        (tmp_path / patient / name).write_text(DETACHED[name])
        (tmp_path / patient / "voxels.raw").write_bytes(voxels)
        return datasets.Case(patient, str(tmp_path / patient / name), None, patient)

    def told():
        return datasets.fingerprint(datasets.Dataset("set", (first,), (), (second,), {}))

    first, second = scan("one", b"1234"), scan("two", b"4321")  # of the same header
    before = told()
    assert "same scan" not in caplog.text
    scan("one", b"1233")
    assert told() != before
    scan("one", b"4321")
    told()
    assert f"{second.image} in test is the same scan as {first.image} in train" in caplog.text
    (tmp_path / "one" / "voxels.raw").unlink()  # reading it tells
    told()


def test_a_jpeg_label_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / kind / "a.jpg"))
    (case,) = datasets.load(tmp_path, 0, 0).train
    with pytest.raises(UserError, match="JPEG changes label values"):
        datasets.read_case(case, dimensions=2)


def beside(folder, *files, labels=()):
    """images/ and labels/ of pictures, of the same file names unless `labels` has others."""
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    mask = np.where(pixels > 40, 255, 0).astype(np.uint8)
    for kind, voxels, names in (("images", pixels, files), ("labels", mask, labels or files)):
        for name in names:
            path = folder / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    return folder


def test_images_beside_labels_are_training_cases(tmp_path):
    data = datasets.load(beside(tmp_path, "b.png", "a.png"), 0, 0)
    assert names(data.train) == ["a", "b"] and not data.test and not data.labels
    image, label = datasets.read_case(data.train[0], dimensions=2)
    assert image.dimensions == 2 and label.dtype == np.uint8
    assert label.ravel()[39:43].tolist() == [0, 0, 1, 1]
    (tmp_path / "labels" / "b.png").unlink()
    with pytest.raises(UserError, match="do not both have b; expected files of the same names"):
        datasets.load(tmp_path, 0, 0)


@pytest.mark.parametrize(
    "files, labels, expected",
    [
        (["s0000/ct.png", "s0001/ct.png"], [], ["s0000", "s0001"]),
        (["s0000/ct.png", "s0001/ct.png"], ["s0000/seg.png", "s0001/seg.png"], ["s0000", "s0001"]),
        (["s0000/ct.png", "s0001/ct.png"], ["s0000.png", "s0001.png"], ["s0000", "s0001"]),
        (["a_0000.png", "b_0000.png"], ["a.png", "b.png"], ["a", "b"]),
        (["x/a.png", "y/b.png"], [], ["a", "b"]),
        (["x/a.png", "x/b.png", "y/a.png"], [], ["x_a", "x_b", "y_a"]),
    ],
)
def test_images_and_labels_may_lie_in_folders(tmp_path, files, labels, expected):
    data = datasets.load(beside(tmp_path, *files, labels=labels), 0, 0)
    assert names(data.train) == expected
    for case, file in zip(data.train, sorted(labels or files)):
        assert case.label == str(tmp_path / "labels" / file)


def test_dicom_folders_may_stand_beside_labels(tmp_path):
    for name in ("p1.2", "p2"):
        write_series(tmp_path / "images" / name)
        write_label(tmp_path / "labels" / f"{name}.nii.gz")
    data = datasets.load(tmp_path, 0, 0)
    assert [(case.name, case.image) for case in data.train] == [
        ("p1.2", str(tmp_path / "images/p1.2")),
        ("p2", str(tmp_path / "images/p2")),
    ]
    for name in ("p1.2", "p2"):  # each slice with a label of its own
        (tmp_path / f"labels/{name}.nii.gz").unlink()
        for slice_ in (tmp_path / "images" / name).iterdir():
            write_label(tmp_path / f"labels/{name}/{slice_.stem}.nii.gz")
    assert len(datasets.load(tmp_path, 0, 0).train) == 6


def write_series(folder):
    """Three DICOM slices of one series."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(3):
        piece = sitk.JoinSeries([sitk.Image([5, 4], sitk.sitkInt16) + 100 * z])
        tags = {"0008|0018": f"1.2.3.4.{z + 1}", "0020|000d": "1.2.3", "0020|000e": "1.2.3.4"}
        for tag, value in {**tags, "0020|0032": f"0\\0\\{z}"}.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{z}.dcm"))
        writer.Execute(piece)


def test_a_modality_may_be_a_word(tmp_path):
    assert len(datasets.load(decathlon(tmp_path, modality="US"), seed=0).train) == 2


def test_nnunet_1_lists_cases_and_stores_first_channels(tmp_path):
    folder = decathlon(tmp_path, numTraining=3)
    for file in [*folder.glob("imagesT?/*.nii.gz")]:
        file.rename(file.with_name(file.name.replace(".nii", "_0000.nii")))
    data = datasets.load(folder, seed=0)
    assert sorted(names(data.train + data.validation)) == ["a", "b", "c"]
    assert [(case.name, bool(case.label)) for case in data.test] == [("d", True), ("e", False)]
    assert data.test[0].image.endswith("imagesTs/d_0000.nii.gz")
    write_image(folder / "imagesTr/b_0001.nii.gz")
    with pytest.raises(UserError, match=r"b_0001.nii.gz: is a channel too many; expected one"):
        datasets.load(folder, seed=0)


@pytest.mark.parametrize("kind", [dict, list])
def test_nnunet_2_may_list_its_cases(tmp_path, kind):
    write_image(tmp_path / "elsewhere/one.nrrd")
    write_image(tmp_path / "elsewhere/two.nrrd")
    write_label(tmp_path / "truth/one.nrrd")
    listed = {
        "one": {"images": ["../elsewhere/one.nrrd"], "label": "../truth/one.nrrd"},
        "two": {"images": [str(tmp_path / "elsewhere/two.nrrd")], "label": "../truth/one.nrrd"},
    }
    dataset = listed if kind is dict else list(listed.values())
    folder = nnunet(tmp_path / "set", dataset=dataset)
    data = datasets.load(folder, seed=0)
    assert sorted(names(data.train + data.validation)) == ["one", "two"]
    assert names(data.test) == ["d", "e"]
    listed["two"]["images"] *= 2
    with pytest.raises(UserError, match=r"dataset.json: 'dataset' lists 2 channels of two; exp"):
        datasets.load(nnunet(tmp_path / "set", dataset=listed), seed=0)


@pytest.mark.parametrize(
    "text",
    [
        "Image;Label;SPLIT;Group\r\na.png;al.png;Train;p\r\nb.png;bl.png;VAL;q\r\n;;;\r\n\r\n",
        "sep=;\nimage;label;split;group\na.png;al.png;training;p\nb.png;bl.png;valid;q\n",
        " image , label, split ,group\n a.png, al.png ,train , p\n\nb.png,bl.png, val,q,,\n",
        "image\tlabel\tsplit\tgroup\na.png\tal.png\ttrain\tp\nb.png\tbl.png\tval\tq\n",
        'split,image,label,group\ntrain,"a.png",al.png,p\nval,b.png,bl.png,q',
        "image,label,split,group\n.\\a.png,.\\al.png,train,p\nb.png,bl.png,val,q\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_csv_of_any_spreadsheet_is_read(tmp_path, text, encoding):
    for name in ("a", "al", "b", "bl"):
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "cases.csv").write_bytes(text.encode(encoding))
    data = datasets.load(tmp_path / "cases.csv", seed=0)
    assert [(c.name, c.group) for c in (*data.train, *data.validation)] == [("a", "p"), ("b", "q")]
    assert data.train[0].label.endswith("al.png") and names(data.validation) == ["b"]


@pytest.mark.parametrize(
    "text, told",
    [
        ("image,label,split\na,1.png,al.png,train\n", "line 2: has 4 values; expected 3, those"),
        ("image,label,split,Label\na.png,al.png,train,\n", "has the column 'label' twice"),
        ("image,label,split\n\n\na.png,al.png,hold\n", "line 4: unknown split 'hold'"),
        ("sep=,\nimage,label,split\na.png,al.png,hold\n", "line 3: unknown split 'hold'"),
        ("", r"lacks \['image', 'label', 'split'\] among \[\]"),
    ],
)
def test_a_bad_csv_is_named(tmp_path, text, told):
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(UserError, match=f"cases.csv.* {told}"):
        datasets.load(tmp_path / "cases.csv", seed=0)


def test_one_file_name_in_two_folders_is_two_cases(tmp_path):
    for subject in ("s0000", "s0001", "s0002"):
        write_image(tmp_path / subject / "ct.nii.gz")
        write_label(tmp_path / subject / "organs.nii.gz")
    rows = [
        f"s000{k}/ct.nii.gz,s000{k}/organs.nii.gz,{split}"
        for k, split in enumerate(("train", "val", "test"))
    ]
    (tmp_path / "cases.csv").write_text("\n".join(["image,label,split", *rows]))
    data = datasets.load(tmp_path / "cases.csv", seed=0)
    assert [*names(data.train), *names(data.validation), *names(data.test)] == [
        "s0000",
        "s0001",
        "s0002",
    ]
    assert data.train[0].group == "s0000"


def test_what_a_csv_says_in_vain_gets_a_warning(tmp_path, caplog):
    header = "image,label,split,patient"
    rows = ("a.nrrd,l.nrrd,train,1", "b.nrrd,l.nrrd,test,1")
    datasets.load(table(tmp_path, *rows, header=header), seed=0)
    assert "the columns patient are not read; those are image, label, split, group" in caplog.text
    told = f"{tmp_path / 'a.nrrd'} and {tmp_path / 'b.nrrd'} have one label, {tmp_path / 'l.nrrd'}"
    assert told in caplog.text


def test_labels_of_an_nnunet_folder_without_an_image_get_a_warning(tmp_path, caplog):
    folder = nnunet(tmp_path)
    datasets.load(folder, seed=0)
    assert not caplog.text
    write_label(folder / "labelsTr" / "y.nrrd")
    datasets.load(folder, seed=0)
    told = "y.nrrd: belongs to no image of imagesTr; labels without an image are passed over: "
    assert f"{told}1." in caplog.text
    write_label(folder / "labelsTr" / "z.nrrd")
    assert len(datasets.load(folder, seed=0).train) == len(datasets.load(folder, seed=1).train)
    assert f"{told}2." in caplog.text


def test_an_nnunet_folder_of_fewer_cases_than_promised_gets_a_warning(tmp_path, caplog):
    datasets.load(nnunet(tmp_path / "three", numTraining=3), seed=0)
    assert not caplog.text
    datasets.load(nnunet(tmp_path / "four", numTraining=4), seed=0)
    assert "numTraining is 4; taken are the 3 cases of imagesTr that end in .nrrd" in caplog.text


def test_the_labels_of_a_csv_are_named_by_their_values(tmp_path):
    rows = ("a.nrrd,l.nrrd,train,", "b.nrrd,m.nrrd,train,")
    data = datasets.load(table(tmp_path, *rows), seed=0, validation_fraction=0)
    write_label(tmp_path / "l.nrrd", (1, 2))
    write_label(tmp_path / "m.nrrd", (4,))
    assert datasets.structures(data) == {1: "label 1", 2: "label 2", 4: "label 4"}
    write_label(tmp_path / "l.nrrd", (0.5,), np.float32)
    (tmp_path / "m.nrrd").write_text("no image")
    with pytest.raises(UserError, match="2 faults in the labels") as told:
        datasets.structures(data)
    for words in ("l.nrrd", "m.nrrd", "[0.5]"):  # in whatever order they were read
        assert words in str(told.value)


def test_the_same_scan_in_two_splits_gets_a_warning_that_names_both(tmp_path, caplog):
    for name in "abc":
        (tmp_path / f"{name}.png").write_text("same" if name in "ac" else name)
        (tmp_path / f"{name}l.png").write_text("label")
    path = table(tmp_path, "a.png,al.png,train,", "b.png,bl.png,val,", "c.png,cl.png,test,")
    for name in "abc":
        (tmp_path / f"{name}.png").write_text("same" if name in "ac" else name)
    datasets.fingerprint(datasets.load(path, seed=0))
    assert f"{tmp_path}/c.png in test is the same scan as {tmp_path}/a.png in train" in caplog.text
    assert "b.png" not in caplog.text
    caplog.clear()
    datasets.fingerprint(datasets.load(decathlon(tmp_path / "one", train=["a"], test=[]), seed=0))
    assert "same scan" not in caplog.text  # it validates on itself, as is said elsewhere


IGNORING = {"background": 0, "left": 1, "right": 2, "ignore": 3}


@pytest.mark.parametrize(
    "foreground, merge, expected",
    [
        (None, True, [1, 1, 255, 0]),
        ((1,), True, [1, 0, 255, 0]),
        (None, False, [1, 2, 255, 0]),
        ((2,), False, [0, 2, 255, 0]),
    ],
)
def test_ignored_voxels_are_marked(tmp_path, foreground, merge, expected):
    data = datasets.load(nnunet(tmp_path, labels=IGNORING), seed=0)
    assert datasets.structures(data) == {1: "left", 2: "right"}
    write_label(tmp_path / "labelsTs/d.nrrd", (1, 2, 3))
    _, label = datasets.read_case(data.test[0], foreground, data.labels, merge=merge)
    assert label.ravel()[:4].tolist() == expected and label.dtype == np.uint8


def test_ignored_voxels_are_no_object(tmp_path):
    data = datasets.load(nnunet(tmp_path, labels=IGNORING), seed=0)
    for foreground in ((3,), (1, 3)):
        with pytest.raises(UserError, match="the label 3 is to be ignored; leave it out"):
            datasets.read_case(data.train[0], foreground, data.labels)
        with pytest.raises(UserError, match=r"no label is \[3\]"):
            datasets.structures(data, foreground)
    write_label(tmp_path / "labelsTs/d.nrrd", (3, 3))
    with pytest.raises(UserError, match="the object is missing"):
        datasets.read_case(data.test[0], None, data.labels)
    with pytest.raises(UserError, match=r"dataset.json: .*expected one 'ignore' label"):
        datasets.load(nnunet(tmp_path, labels=IGNORING | {"liver": 255}), seed=0)
