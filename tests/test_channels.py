"""Images of several channels: how they lie in files, data sets of them, training to client."""

import dataclasses
import json
import re

import helpers
import numpy as np
import pytest
import rest_server
import running
import SimpleITK as sitk
import tensorflow as tf

from tf_autoctx import errors, export
from tf_autoctx.data import augment, datasets, image_files, images, names, pipeline, subvolumes
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.report import views
from tf_autoctx.systems.embryo.configuration import Embryo
from tf_autoctx.systems.embryo.segmentation import Refinement
from tf_autoctx.systems.fetal_head.configuration import FetalHead
from tf_autoctx.systems.fetal_head.segmentation import Cascade
from tf_autoctx.systems.multi_organ.configuration import MultiOrgan
from tf_autoctx.systems.multi_organ.segmentation import Pyramid
from tf_autoctx.systems.shared import ensembles, prediction

SPACING = (0.5, 0.7, 0.9)  # (x, y, z)
SIZE = (24, 16, 28)  # (z, y, x)
NAMES = ("T1", "T2")


def channel(number, case=0, size=SIZE):
    """Noise, int16, of another range for each channel."""
    rng = np.random.default_rng([case, number])
    return rng.integers(0, 100 * 10**number, size).astype(np.int16)


def label(case=0, size=SIZE):
    """A box of 1 within which is one of 2."""
    voxels = np.zeros(size, np.uint8)
    voxels[4:14, 4:12, 6 + case : 18 + case] = 1
    voxels[6:10, 6:10, 8 + case : 14 + case] = 2
    return voxels


def volume(voxels, spacing=SPACING, origin=(0.0, 0.0, 0.0)):
    """An image of voxels (z, y, x), of several channels with an axis more."""
    image = sitk.GetImageFromArray(voxels, isVector=voxels.ndim == 4)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def write(path, image, orientation="LPS"):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path))
    return path


def in_a_file_each(folder, case=0, ending=".nii.gz", count=2):
    """Channels as nnU-Net has them, each in an orientation of its own."""
    paths = [folder / f"case{case}_{number:04d}{ending}" for number in range(count)]
    for number, (path, orientation) in enumerate(zip(paths, ("LPS", "RAS", "SPL"))):
        write(path, volume(channel(number, case)), orientation)
    return paths


def in_one_file(path, case=0, count=2):
    """Channels as the values of a voxel."""
    voxels = np.stack([channel(number, case) for number in range(count)], axis=-1)
    return write(path, volume(voxels))


def in_a_fourth_axis(path, case=0, count=2):
    """Channels as the Decathlon has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = [volume(channel(number, case)) for number in range(count)]
    sitk.WriteImage(sitk.JoinSeries(planes), str(path))
    return path


# Files


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: image_files.joined(in_a_file_each(folder)),
        lambda folder: image_files.joined(in_a_file_each(folder, ending=".nrrd")),
        lambda folder: in_one_file(folder / "a.nrrd"),
        lambda folder: in_one_file(folder / "a.mha"),
        lambda folder: in_one_file(folder / "a.nii.gz"),
        lambda folder: in_a_fourth_axis(folder / "a.nii.gz"),
        lambda folder: in_a_fourth_axis(folder / "a.mha"),
    ],
    ids=["nnunet", "nnunet_nrrd", "nrrd", "mha", "nifti_vector", "nifti_4d", "mha_4d"],
)
def test_channels_lie_in_a_file_each_or_in_one(tmp_path, make):
    image = images.read_raw(make(tmp_path), 3, channels=2)
    expected = np.stack([channel(0), channel(1)], axis=-1)
    np.testing.assert_array_equal(image.array, expected)
    assert image.array.dtype == np.int16 and image.frame.shape == SIZE
    np.testing.assert_allclose(image.spacing, SPACING[::-1], rtol=1e-6)
    result = image.like(label())
    assert result.GetNumberOfComponentsPerPixel() == 1 and result.GetSize() == image.grid.size


def test_a_fourth_axis_of_no_length_is_read(tmp_path):
    """The Decathlon's pixdim of it may be 0."""
    path = in_a_fourth_axis(tmp_path / "a.nii")
    raw = bytearray(path.read_bytes())
    raw[76 + 4 * 4 : 76 + 5 * 4] = b"\0\0\0\0"
    path.write_bytes(raw)
    image = images.read_raw(path, 3, channels=2)
    np.testing.assert_array_equal(image.array[..., 1], channel(1))


def test_channels_of_other_types_become_floats(tmp_path):
    first, second = in_a_file_each(tmp_path)
    halves = channel(1).astype(np.float64) / 2
    write(second, volume(halves))
    image = images.read_raw(f"{first}, {second}", 3, channels=2)
    assert image.array.dtype == np.float32
    np.testing.assert_array_equal(image.array, np.stack([channel(0), halves], axis=-1))
    assert image_files.of(f"{first},{second}") == [first, second]
    assert image_files.digest(f"{first},{second}") != image_files.digest(f"{second},{first}")


def test_results_lie_on_the_grid_of_the_first_channel(tmp_path):
    first, second = in_a_file_each(tmp_path)
    for order, orientation in (([first, second], "LPS"), ([second, first], "RAS")):
        image = images.read_raw(image_files.joined(order), 3, channels=2)
        images.write(tmp_path / "label.nii.gz", image.like(label()))
        written = images.read(tmp_path / "label.nii.gz")
        assert image.orientation == written.orientation == orientation
        np.testing.assert_array_equal(written.array, label())


def of_another_grid(folder):
    first, second = in_a_file_each(folder)
    write(second, volume(channel(1), (0.5, 0.7, 1.0)))
    return f"{first},{second}"


def of_another_place(folder):
    first, second = in_a_file_each(folder)
    write(second, volume(channel(1), origin=(0.0, 0.0, 3.0)))
    return f"{first},{second}"


def joined_files(folder):
    return image_files.joined(in_a_file_each(folder))


def with_one_missing(folder):
    return f"{in_a_file_each(folder)[0]},{folder}/b.nii.gz"


def in_two_vectors(folder):
    files = [in_one_file(folder / f"{name}.nrrd") for name in "ab"]
    return image_files.joined(files)


@pytest.mark.parametrize(
    "make, channels, sentence",
    [
        (
            of_another_grid,
            2,
            r".*case0_0001.nii.gz: spacing \(0.5, 0.7, 1.0\) mm does not match \(0.5, 0.7, 0.9\) "
            r"of its first channel .*case0_0000.nii.gz; resample the channel or fix the file\.",
        ),
        (of_another_place, 2, r".*case0_0001.nii.gz: origin .* of its first channel .*0000.nii.gz"),
        (joined_files, 1, "has 2 channels; expected one"),
        (joined_files, 3, "has 2 channels; expected 3"),
        (lambda folder: in_a_file_each(folder)[0], 2, "has 1 channel; expected 2, in one file or"),
        (lambda folder: in_one_file(folder / "a.nrrd"), 3, "has 2 channels; expected 3, in one"),
        (lambda folder: in_one_file(folder / "a.nrrd"), 1, "has 2 values per voxel .*; expected o"),
        (lambda folder: in_a_fourth_axis(folder / "a.nii.gz"), 3, "has 2 channels; expected 3"),
        (
            lambda folder: in_a_fourth_axis(folder / "a.nii.gz"),
            1,
            r"has 4 dimensions, size \(28, 16, 24, 2\); expected two or three",
        ),
        (in_two_vectors, 2, "a.nrrd: has 2 values per voxel .*; expected one"),
        (with_one_missing, 2, "b.nii.gz: No such file"),
    ],
)
def test_other_channels_are_refused_in_one_sentence(tmp_path, make, channels, sentence):
    with pytest.raises(errors.UserError, match=sentence) as error:
        images.read_raw(make(tmp_path), 3, channels=channels)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_a_2d_image_has_one_channel(tmp_path):
    for name in "ab":
        sitk.WriteImage(sitk.Image([4, 3], sitk.sitkUInt8), str(tmp_path / f"{name}.png"))
    with pytest.raises(errors.UserError, match=r"b.png: has 2 channels; expected one\."):
        images.read_raw(f"{tmp_path}/a.png,{tmp_path}/b.png", 2)


def test_a_comma_in_a_name_is_no_channel(tmp_path):
    path = write(tmp_path / "a,b.nrrd", volume(channel(0)))
    assert image_files.channels(path) == [path]
    np.testing.assert_array_equal(images.read_raw(path, 3).array, channel(0))
    with pytest.raises(errors.UserError, match=r"a,b.nrrd: has a comma in its path"):
        image_files.joined([path, path])


# Data sets


def nnunet(folder, count=4, tests=1, ending=".nii.gz", **changes):
    """An nnU-Net folder of two channels."""
    for case in range(count + tests):
        end = "Tr" if case < count else "Ts"
        in_a_file_each(folder / f"images{end}", case, ending)
        write(folder / f"labels{end}" / f"case{case}{ending}", volume(label(case)))
    return describe(folder, file_ending=ending, **changes)


def describe(folder, **changes):
    description = {
        "channel_names": dict(enumerate(NAMES)),
        "labels": {"background": 0, "body": 1, "ventricle": 2},
        **changes,
    }
    told = {key: value for key, value in description.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(told))
    return folder


def nnunet_1(folder, channel=""):
    return listing(nnunet(folder), listed(channel))


def nnunet_1_by_first_channel(folder):
    return nnunet_1(folder, "_0000")


def listed(channel=""):
    return [
        {"image": f"imagesTr/case{k}{channel}.nii.gz", "label": f"labelsTr/case{k}.nii.gz"}
        for k in range(4)
    ]


def listing(folder, training):
    modality = {"1": NAMES[1], "0": NAMES[0]}
    tests = ["imagesTs/case4.nii.gz"]
    kinds = {"0": "background", "1": "body", "2": "ventricle"}
    return describe(
        folder, channel_names=None, modality=modality, training=training, test=tests, labels=kinds
    )


def nnunet_listing_files(folder):
    nnunet(folder)
    dataset = {
        f"case{k}": {
            "images": [f"imagesTr/case{k}_{number:04d}.nii.gz" for number in range(2)],
            "label": f"labelsTr/case{k}.nii.gz",
        }
        for k in range(4)
    }
    return describe(folder, dataset=dataset)


def decathlon(folder):
    """Two channels along a fourth axis."""
    for case in range(5):
        end = "Tr" if case < 4 else "Ts"
        in_a_fourth_axis(folder / f"images{end}" / f"case{case}.nii.gz", case)
        write(folder / f"labels{end}" / f"case{case}.nii.gz", volume(label(case)))
    return listing(folder, listed())


def table(folder, header="case,image_T1,image_T2,label,split"):
    """A CSV file with a column for each channel."""
    rows = []
    for case in range(5):
        first, second = in_a_file_each(folder / f"patient{case}", case)
        write(folder / f"patient{case}" / "label.nii.gz", volume(label(case)))
        where = [f"patient{case}/{path.name}" for path in (first, second)]
        split = "train" if case < 4 else "test"
        rows.append(f"case{case},{where[0]},{where[1]},patient{case}/label.nii.gz,{split}")
    (folder / "cases.csv").write_text("\n".join([header, *rows]))
    return folder / "cases.csv"


@pytest.mark.parametrize(
    "make",
    [nnunet, nnunet_1, nnunet_1_by_first_channel, nnunet_listing_files, decathlon, table],
)
def test_a_data_set_tells_its_channels(tmp_path, make):
    source = make(tmp_path / "set") if make is not table else table(tmp_path)
    data = datasets.load(source, seed=0)
    assert data.channels == tuple(name.casefold() if make is table else name for name in NAMES)
    cases = sorted((*data.train, *data.validation, *data.test), key=lambda case: case.name)
    assert [case.name for case in cases] == [f"case{k}" for k in range(5)]
    for number, case in enumerate(cases):
        image, truth = datasets.read_case(case, merge=False)
        expected = np.stack([channel(k, number) for k in range(2)], axis=-1)
        np.testing.assert_array_equal(image.array, expected)
        np.testing.assert_array_equal(truth, label(number))
    with pytest.raises(errors.FieldError, match=r"channels=3: .* tells 2: (t1, t2|T1, T2); l"):
        datasets.load(source, seed=0, channels=3)


@pytest.mark.parametrize("files", [True, False])
def test_channels_of_a_folder_without_a_description_are_told_by_a_flag(tmp_path, files):
    for case in range(3):
        if files:
            in_a_file_each(tmp_path / "images", case)
        else:
            in_one_file(tmp_path / "images" / f"case{case}.mha", case)
        write(tmp_path / "labels" / f"case{case}.nii.gz", volume(label(case)))
    data = datasets.load(tmp_path, seed=0, channels=2)
    assert data.channels == ("0", "1")
    cases = sorted((*data.train, *data.validation), key=lambda case: case.name)
    assert [case.name for case in cases] == ["case0", "case1", "case2"]
    image, _ = datasets.read_case(cases[1])
    np.testing.assert_array_equal(image.array[..., 1], channel(1, 1))
    if files:
        with pytest.raises(errors.UserError, match="images/ and labels/ do not both have"):
            datasets.load(tmp_path, seed=0)
    else:
        alone = datasets.load(tmp_path, seed=0)
        with pytest.raises(errors.UserError, match=r"has 2 values per voxel .*; expected one"):
            datasets.read_case(alone.train[0])


def test_a_column_image_may_hold_all_channels(tmp_path):
    for name in "ab":
        in_one_file(tmp_path / f"{name}.nrrd")
        write(tmp_path / f"{name}l.nrrd", volume(label()))
    rows = ["image,label,split", "a.nrrd,al.nrrd,train", "b.nrrd,bl.nrrd,val"]
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    case = datasets.load(tmp_path / "cases.csv", seed=0, channels=2).train[0]
    assert (case.name, case.channels) == ("a", 2)
    np.testing.assert_array_equal(datasets.read_case(case)[0].array[..., 0], channel(0))


def test_the_column_image_wins(tmp_path, caplog):
    """Files with a column image_id of their own are read as before."""
    path = table(tmp_path)
    _, *rows = (row.split(",") for row in path.read_text().splitlines())
    lines = [f"{first},7,{label},{split}" for _, first, _, label, split in rows]
    path.write_text("\n".join(["image,image_id,label,split", *lines]))
    data = datasets.load(path, seed=0)
    assert data.channels == ("0",) and "the columns image_id are not read" in caplog.text
    image, _ = datasets.read_case(data.test[0])
    np.testing.assert_array_equal(image.array, channel(0, 4))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda t: re.sub(r"(case1),[^,]*", r"\1,", t), "line 3: has no image_t1; expected a path"),
        (lambda t: t.replace("case2_0001", "other"), "line 4: lists .*other.nii.gz, which does"),
        (lambda t: t.replace("case1,", "a/b,"), "line 3: has the case 'a/b'; expected a name"),
        (
            lambda t: t.replace("split", "split,series").replace("train", "train,2"),
            "line 2: has the series '2' of channels in columns; expected a DICOM folder",
        ),
        (
            lambda t: t.replace("label,split", "mask,split"),
            r"lacks \['label'\] among .*; expected image,label,split",
        ),
        (
            lambda t: t.replace("patient3/case3_0000", "patient2/case2_0000"),
            "case3_0001.nii.gz in train has the image of .*case2_0001.nii.gz in train; expected",
        ),
    ],
)
def test_a_bad_csv_of_channels_is_named(tmp_path, change, sentence):
    path = table(tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(errors.UserError, match=f"cases.csv.*{sentence}"):
        datasets.load(path, seed=0)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            lambda folder: (folder / "imagesTr/case1_0001.nii.gz").unlink(),
            r"case1_0001.nii.gz: is missing; expected 2 channels, case1_0000.nii.gz to case1_0001",
        ),
        (
            lambda folder: in_a_file_each(folder / "imagesTr", 1, count=3),
            r"case1_0002.nii.gz: is none of 2 channels; expected <case>_0000.nii.gz to <case>_0001",
        ),
        (
            lambda folder: describe(folder, channel_names={"0": "T1"}, file_ending=".nii.gz"),
            r"case0_0001.nii.gz: is not a first channel; expected one channel, named <case>_0000",
        ),
        (
            lambda folder: describe(
                folder, dataset={"a": {"images": ["a", "b", "c"], "label": "l"}}
            ),
            "'dataset' lists 3 channels of a; expected 2",
        ),
        (
            lambda folder: describe(folder, channel_names={"T1": 0, "T2": 1}),
            r"dataset.json: has the channels {'T1': 0, 'T2': 1}; expected a name for each number",
        ),
        (
            lambda folder: describe(folder, channel_names={"0": "T1", "2": "T2"}),
            r"has the channels {'0': 'T1', '2': 'T2'}; expected a name for each number from 0",
        ),
        (
            lambda folder: describe(folder, channel_names={"0": "T1", "1": "T2", "2": "ADC"}),
            r"case0_0002.nii.gz: is missing; expected 3 channels, .*, as the channel_names of data",
        ),
        (
            lambda folder: describe(folder, file_ending=".nii"),
            r"imagesTr: holds no file that ends in .nii; expected images, or another file_ending",
        ),
        (
            lambda folder: describe(folder, file_ending="nii.gz"),
            r"dataset.json: has the file_ending 'nii.gz'; expected one that begins with a dot",
        ),
    ],
)
def test_channels_that_are_missing_or_too_many_are_named(tmp_path, change, sentence):
    folder = nnunet(tmp_path / "set")
    change(folder)
    with pytest.raises(errors.UserError, match=sentence):
        datasets.load(folder, seed=0)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            lambda folder: (folder / "imagesTr/case1_0001.nii.gz").unlink(),
            r"case1_0001.nii.gz: is missing; expected 2 channels, case1_0000.nii.gz to case1_0001",
        ),
        (
            lambda folder: in_a_file_each(folder / "imagesTr", 1, count=3),
            r"case1_0002.nii.gz: is a channel too many; expected 2 channels, case1_0000.nii.gz to",
        ),
    ],
)
def test_nnunet_1_names_channels_that_are_missing_or_too_many(tmp_path, change, sentence):
    folder = nnunet_1(tmp_path / "set")
    change(folder)
    with pytest.raises(errors.UserError, match=sentence):
        datasets.load(folder, seed=0)


def test_a_channel_without_contrast_is_named(tmp_path):
    folder = nnunet(tmp_path / "set")
    write(folder / "imagesTr/case1_0001.nii.gz", volume(np.full(SIZE, 7, np.int16)))
    data = datasets.load(folder, seed=0)
    (case,) = (case for case in (*data.train, *data.validation) if case.name == "case1")
    with pytest.raises(errors.UserError, match=r"_0001.nii.gz: every voxel of channel 1 is 7;"):
        datasets.read_case(case)


def test_every_channel_makes_the_fingerprint(tmp_path):
    data = datasets.load(nnunet(tmp_path / "set"), seed=0)
    before = datasets.fingerprint(data)
    write(tmp_path / "set/imagesTr/case1_0001.nii.gz", volume(channel(5)))
    assert datasets.fingerprint(data) != before
    swapped = [",".join(reversed(case.image.split(","))) for case in data.train]
    train = tuple(dataclasses.replace(c, image=image) for c, image in zip(data.train, swapped))
    changed = dataclasses.replace(data, train=train)
    assert datasets.fingerprint(changed) != datasets.fingerprint(data)


# Names


def test_the_images_that_a_user_gives(tmp_path):
    pairs = [in_a_file_each(tmp_path / "scans", case) for case in range(2)]
    alone = in_one_file(tmp_path / "scans" / "below" / "whole.mha")
    expected = {f"case{k}": image_files.joined(pair) for k, pair in enumerate(pairs)}
    expected = {"below/whole": str(alone), **expected}
    assert names.given(tmp_path / "scans", channels=2) == expected
    first, second = pairs[0]
    for given in (first, f"{first},{second}"):
        assert names.given(given, channels=2) == {"case0": expected["case0"]}
    assert names.given(alone, channels=2) == {"whole": str(alone)}
    other = write(tmp_path / "t1.nii.gz", volume(channel(0)))
    assert names.given(f"{other},{second}", channels=2) == {"t1": f"{other},{second}"}
    second.unlink()
    for given in (first, tmp_path / "scans"):
        with pytest.raises(errors.UserError, match=r"case0_0001.nii.gz: is missing; expected 2 ch"):
            names.given(given, channels=2)


# Systems


def noise(channels, size=(1, 6, 8, 7), seed=0):
    return helpers.noise(*size, channels, seed=seed)


def test_each_channel_is_scaled_by_itself():
    image = noise(2)
    image[..., 1] = 1000 * image[..., 1] + 5
    head = np.array(Cascade(FetalHead(scale=1.0), 2).preprocess(image))
    embryo = np.array(Refinement(Embryo(), {1: "b", 2: "v"}, 2).preprocess(image))
    for number in range(2):
        alone = image[..., number : number + 1]
        low, high = alone.min(), alone.max()
        np.testing.assert_allclose(
            head[..., number : number + 1], (alone - low) / (high - low), atol=1e-6
        )
        np.testing.assert_allclose(
            embryo[..., number : number + 1], alone / np.sqrt((alone**2).mean()), rtol=1e-5
        )
    organs = np.array(Pyramid(MultiOrgan(), {1: "liver"}, 2).preprocess(image, 1))
    np.testing.assert_allclose(organs, (np.clip(image, -160, 240) + 160) / 100, atol=1e-5)


def test_context_is_added_to_all_channels_or_put_beside_them():
    image, context = noise(3), noise(1, seed=1)
    joined = {
        join: np.array(Cascade(FetalHead(join=join), 3).joined(image, context))
        for join in ("sum", "concat")
    }
    np.testing.assert_array_equal(joined["sum"], image + context)
    np.testing.assert_array_equal(joined["concat"], np.concatenate([image, context], -1))
    for join, channels in (("sum", 3), ("concat", 4)):
        network = Cascade(FetalHead(join=join, base_filters=2), 3).network()
        assert network.input.shape[-1] == channels


def test_networks_take_as_many_channels():
    organs = Pyramid(MultiOrgan(base_filters=2, downsampling=(4, 2)), {1: "liver"}, 2).network()
    assert [x.shape[-1] for x in organs.inputs] == [2, 2]
    inputs = [organs.get_layer(f"level_{level}").input.shape[-1] for level in (1, 2)]
    assert inputs == [2, 2 + 2]
    tiny = Embryo(low_size=8, body_box=8, ventricle_box=8, base_filters=2, depth=2, kernel=3)
    whole = Refinement(tiny, {1: "b", 2: "v"}, 2).network("end_to_end")
    seen = [whole.get_layer(f"vnet_{number}").input.shape[-1] for number in (1, 2, 3)]
    assert seen == [2, 3, 3]


def test_every_channel_is_read_of_the_cache(tmp_path):
    """A patch, deformed or not, and subvolumes have all channels in their place."""
    image = np.stack([channel(k).astype(np.float32) for k in range(2)], axis=-1)
    tensors = {"image": image, "label": label()[..., None], "spacing": np.ones(3, np.float32)}
    for name, tensor in tensors.items():
        pipeline.store(tmp_path / name, tensor, (8, 8, 8))
    paths = {name: str(tmp_path / name) for name in tensors}
    whole = pipeline.sample({**paths, "context": ""}, 2)
    np.testing.assert_array_equal(whole["image"], image)
    assert whole["context"].shape == (*SIZE, 1)
    seed = tf.constant([1, 2], tf.int64)

    def read(case, seed):
        grid = {name: array for name, array in case.items() if name != "spacing"}
        cut = pipeline.random_patch(grid, seed, (8, 8, 8))
        moved = subvolumes.patch(case, seed, (8, 8, 8), Augmentation(shift=1))
        return {"image": cut["image"], "label": cut["label"], "image_moved": moved["image"]}

    order = pipeline.Order(seed=0, steps=2)
    columns = {name: [path] for name, path in paths.items()}
    batches = pipeline.training(columns, read, order, None, 2)
    for batch, _ in batches:
        assert batch["image"].shape == batch["image_moved"].shape == (1, 8, 8, 8, 2)
        corner = np.argwhere(image[..., 1] == batch["image"][0, 0, 0, 0, 1].numpy())
        cuts = [image[z : z + 8, y : y + 8, x : x + 8] for z, y, x in corner]
        assert any(np.array_equal(cut, batch["image"][0]) for cut in cuts)
    changed = augment.augmented(
        {"image": tf.constant(image), "label": tf.constant(label()[..., None])},
        seed,
        Augmentation(rotation=10.0, gamma=1.0, intensity_jitter=0.5, flips=True),
    )
    assert changed["image"].shape == image.shape


# A run


COMMON = (
    *("--steps=2", "--samples_per_epoch=2", "--precision=float32", "--base_filters=2"),
    *("--learning_rate=0.01", "--batch_size=1"),
)
TINY = {
    "fetal_head": (
        *("--variant=USegNet", "--level=2", "--join=concat", "--scale=0.5"),
        *("--flips", "--rotation=5"),
    ),
    "multi_organ": ("--patch_size=16", "--tile_size=16", "--downsampling=2,1"),
    "embryo": (
        *("--low_size=8", "--body_box=16", "--ventricle_box=8", "--depth=2", "--kernel=3"),
        "--foreground=1,2",
    ),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An nnU-Net data set of two channels."""
    return nnunet(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module", params=[*TINY])
def run(request, source, tmp_path_factory):
    """A finished run of each system on it."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    flags = (f"--data_dir={source}", f"--work_dir={folder}", *COMMON, *TINY[request.param])
    with helpers.plain_networks():
        running.train(request.param, *flags)
    return folder


def of_last_version(run):
    return export.newest(run / "saved_model")


def test_a_run_keeps_its_channels_and_exports_them(run, source, tmp_path):
    facts = json.loads((run / "config.json").read_text())
    card = export.read_card(of_last_version(run))
    assert facts["channels"] == card["channels"] == [*NAMES]
    assert card["inputs"]["image"]["shape"][-1] == 2
    case = source / "imagesTs/case4_0000.nii.gz"
    for number, model in enumerate((run, run / "saved_model")):
        running.call(
            "predict", f"--model={model}", f"--input={case}", f"--output={tmp_path / str(number)}"
        )
    labels = [images.read(tmp_path / str(k) / "case4.nii.gz") for k in range(2)]
    np.testing.assert_array_equal(labels[0].array, labels[1].array)
    assert labels[0].orientation == "LPS"
    segment = prediction.load(run)
    voxels = np.stack([channel(k, 4) for k in range(2)], axis=-1)
    mine = segment(voxels, SPACING[::-1], probabilities=True)
    np.testing.assert_array_equal(labels[0].array, mine["label"])
    for number in range(2):  # each is seen
        other = voxels.copy()
        other[..., number] = channel(number, 9)
        theirs = segment(other, SPACING[::-1], probabilities=True)
        name = next(iter(mine["probability"]))
        gap = np.abs(mine["probability"][name] - theirs["probability"][name]).max()
        assert gap > 1e-6, number


def test_an_export_of_channels_is_served(run, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 256, (2, 24, 20, 28, 2), np.uint8)
    running.check_export(of_last_version(run), voxels, tmp_path)


def test_files_of_any_form_give_one_answer(run, tmp_path):
    each = in_a_file_each(tmp_path / "each", 4)
    in_one_file(tmp_path / "one" / "case4.mha", 4)
    in_a_fourth_axis(tmp_path / "fourth" / "case4.nii.gz", 4)
    inputs = [*(tmp_path / name for name in ("each", "one", "fourth")), image_files.joined(each)]
    answers = []
    for number, given in enumerate(inputs):
        output = tmp_path / f"results{number}"
        running.call("predict", f"--model={run}", f"--input={given}", f"--output={output}")
        answers.append(images.read(output / "case4.nii.gz").array)
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])
    # Results of a channel that has changed are made anew.
    arguments = f"--model={run}", f"--input={inputs[-1]}", f"--output={tmp_path / 'results3'}"
    before = (tmp_path / "results3/case4.nii.gz").stat().st_mtime_ns
    running.call("predict", *arguments, "--resume")
    assert (tmp_path / "results3/case4.nii.gz").stat().st_mtime_ns == before
    write(each[1], volume(channel(1, 8)))
    running.call("predict", *arguments, "--resume")
    assert (tmp_path / "results3/case4.nii.gz").stat().st_mtime_ns > before


def test_another_number_of_channels_is_one_sentence(run, tmp_path, capsys):
    write(tmp_path / "scan.nii.gz", volume(channel(0)))
    for model in (run, run / "saved_model"):
        with pytest.raises(SystemExit):
            running.call(
                "predict",
                f"--model={model}",
                f"--input={tmp_path / 'scan.nii.gz'}",
                f"--output={tmp_path / 'out'}",
            )
        told = capsys.readouterr().err
        assert "scan.nii.gz: has 1 channel; expected 2, in one file or in one each" in told
    with pytest.raises(errors.UserError, match=r"has voxels of the shape \(24, 16, 28\); expected"):
        prediction.load(run)(channel(0), SPACING)


def test_a_client_sends_channels(run, tmp_path, capsys):
    models = rest_server.Models({"model": run / "saved_model"})
    each = in_a_file_each(tmp_path / "each", 4)
    with rest_server.Server(models) as server:
        where = f"--server={server.address}", "--model=model"
        for number, given in enumerate((tmp_path / "each", image_files.joined(each))):
            output = tmp_path / str(number)
            running.call("client", *where, f"--input={given}", f"--output={output}")
        with pytest.raises(SystemExit):
            alone = f"--input={write(tmp_path / 'scan.nii.gz', volume(channel(0)))}"
            running.call("client", *where, alone, f"--output={tmp_path / '2'}")
    assert "has 1 channel; expected 2" in capsys.readouterr().err
    models.close()
    where = f"--input={tmp_path / 'each'}", f"--output={tmp_path / 'p'}"
    running.call("predict", f"--model={run}", *where)
    expected = images.read(tmp_path / "p/case4.nii.gz").array
    for number in range(2):
        answer = images.read(tmp_path / f"{number}/case4.nii.gz").array
        assert (answer == expected).mean() > 0.999


def test_a_report_shows_a_channel(run, tmp_path, capsys):
    (file,) = (run / "evaluation/views").iterdir()
    shown = [views.read(file, number)["image"] for number in range(2)]
    assert shown[0].shape == shown[1].shape and not np.array_equal(*shown)
    evaluations = f"--evaluations={run / 'evaluation'}"
    pages = []
    for number in range(2):
        page = tmp_path / f"{number}.html"
        running.call("report", evaluations, f"--output={page}", f"--channel={number}")
        pages.append(page.read_text("utf-8"))
    assert pages[0] != pages[1]
    with pytest.raises(SystemExit):
        running.call("report", evaluations, f"--output={tmp_path / '2.html'}", "--channel=2")
    assert "--channel=2: " in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["p-USegNet", "2D-USegNet"])
def test_patches_and_slices_have_channels(source, tmp_path, variant):
    with running.unexported(), helpers.plain_networks():
        running.train(
            "fetal_head",
            *(f"--data_dir={source}", f"--work_dir={tmp_path}", *COMMON, f"--variant={variant}"),
            *("--patch_size=8", "--level=2", "--join=sum", "--rotation=5", "--noise=0.1"),
        )
    voxels = np.stack([channel(k, 4) for k in range(2)], axis=-1)
    assert prediction.load(tmp_path)(voxels, SPACING[::-1])["label"].shape == SIZE


def test_the_renderer_takes_one_channel(source, tmp_path, capsys):
    with pytest.raises(SystemExit):
        flags = f"--data_dir={source}", f"--work_dir={tmp_path}", "--preset=standard"
        running.train("renderer", *flags)
    told = capsys.readouterr().err
    expected = "set: its images have 2 channels (T1, T2); expected one, as renderer takes no more."
    assert expected in told


def test_a_run_of_one_channel_refuses_two(tmp_path, capsys):
    with helpers.plain_networks():
        running.train(
            "fetal_head",
            *(f"--work_dir={tmp_path / 'run'}", *COMMON, "--level=1"),
            *("--phantom_size=24,16,28", "--phantom_cases=2,1"),
        )
    assert "channels" not in json.loads((tmp_path / "run/config.json").read_text())
    assert "channels" not in export.read_card(of_last_version(tmp_path / "run"))
    each = in_a_file_each(tmp_path)
    inputs = {
        image_files.joined(each): "has 2 channels; expected one.",
        in_one_file(tmp_path / "a.mha"): "has 2 values per voxel",
        in_a_fourth_axis(tmp_path / "b.nii.gz"): "has 4 dimensions",
    }
    for given, sentence in inputs.items():
        with pytest.raises(SystemExit):
            running.call(
                "predict",
                f"--model={tmp_path / 'run'}",
                f"--input={given}",
                f"--output={tmp_path / 'out'}",
            )
        assert sentence in capsys.readouterr().err


def test_runs_of_other_channels_are_no_ensemble(tmp_path):
    folders = []
    for number, facts in enumerate(({"channels": ["T1", "T2"]}, {"channels": ["T2", "T1"]}, {})):
        folder = tmp_path / str(number)
        folder.mkdir()
        labels = {"labels": {"1": "head"}, "orientation": "LPS"}
        made = {"system": "fetal_head", "flags": {"seed": 0}, "data_fingerprint": "a"}
        (folder / "config.json").write_text(json.dumps({**made, **labels, **facts}))
        folders.append(folder)
    for other in folders[1:]:
        with pytest.raises(errors.UserError, match=r"has the channels .*, .*0 T1, T2; exp"):
            ensembles.load([folders[0], other])


def test_sliding_windows_see_one_channel(source, tmp_path, capsys):
    run = tmp_path / "run"
    with running.unexported(), helpers.plain_networks():
        running.train(
            "embryo",
            *(f"--data_dir={source}", f"--work_dir={run}", *COMMON, *TINY["embryo"]),
            "--stage=initial",
        )
    with pytest.raises(SystemExit):
        running.call("sliding_windows", f"--run={run}", f"--output={tmp_path / 'peer'}")
    assert "its images have 2 channels; expected one" in capsys.readouterr().err
    assert not (tmp_path / "peer").exists()
