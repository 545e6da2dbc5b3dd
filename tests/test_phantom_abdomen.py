import json
import time

import numpy as np
import pytest
from helpers import dice
from scipy import ndimage
from skimage import morphology

from tf_autoctx.data import images, phantoms
from tf_autoctx.data.phantoms.abdomens import VENA_CAVA, _Subject
from tf_autoctx.errors import UserError

TINY = (24, 28, 40), 6.0  # voxels, mm
NAMES = phantoms.ABDOMEN_LABELS
HU = dict(
    zip(
        NAMES,
        ((130, 175), (130, 180), (93, 118), (103, 130), (15, 75), (0, 20), (75, 105)),
        strict=True,
    )
)
ML = dict(
    zip(
        NAMES,
        ((35, 110), (12, 50), (300, 1100), (20, 170), (70, 400), (6, 45), (20, 110)),
        strict=True,
    )
)


@pytest.fixture(scope="module")
def cases():
    return [phantoms.abdomen(seed=seed) for seed in range(3)]


def centre_mm(mask, spacing):
    return np.array(ndimage.center_of_mass(mask)) * spacing


def test_seed_decides_everything():
    first, again, other = (phantoms.abdomen(*TINY, seed) for seed in ((3, 1), (3, 1), (3, 2)))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert dice(first[1] > 0, other[1] > 0) < 0.95


def test_tiny_is_fast_and_of_the_promised_types():
    start = time.process_time()
    image, label, spacing = phantoms.abdomen(*TINY, seed=0)
    assert time.process_time() - start < 3  # about 0.3 s; room for a busy machine
    assert (
        image.dtype == np.int16
        and label.dtype == np.uint8
        and image.shape == label.shape == TINY[0]
    )
    assert spacing == (6.0, 6.0, 6.0)


@pytest.mark.parametrize("seed", (0, (0, 7), 4_000_000))
def test_every_organ_is_in_the_default_view(cases, seed):
    label = (phantoms.abdomen(seed=seed) if seed else cases[0])[1]
    counts = np.bincount(label.ravel())
    millilitres = dict(zip(NAMES, counts[1:] * 1.5**3 / 1000, strict=True))
    for name, (low, high) in ML.items():
        assert low < millilitres[name] < high, (name, millilitres)


def test_same_anatomy_at_any_spacing_and_view():
    fine = phantoms.abdomen((80, 80, 120), 1.5, seed=5)[1]
    coarse = phantoms.abdomen((40, 40, 60), 3.0, seed=5)[1]
    wide = phantoms.abdomen((100, 120, 160), 1.5, seed=5)[1]
    np.testing.assert_array_equal(wide[10:90, 20:100, 20:140], fine)
    again = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    for value, name in enumerate(NAMES, 1):
        least = 0.7 if value in (1, 2) else 0.85  # vessels of 4 mm on voxels of 3 mm
        assert dice(fine == value, again == value) > least, name


def test_organs_move_between_patients(cases):
    spacing = cases[0][2]
    for value, name in enumerate(NAMES, 1):
        middles = [centre_mm(label == value, spacing) for _, label, _ in cases]
        apart = max(np.linalg.norm(a - b) for a in middles for b in middles)
        assert apart > 5, name
    for _, label, _ in cases:  # and yet everything is on its side: z up, y back, x left
        middle = {name: centre_mm(label == value, spacing) for value, name in enumerate(NAMES, 1)}
        assert middle["liver"][2] < middle["portal vein"][2] < middle["spleen"][2]
        assert (
            middle["stomach"][1] < middle["artery"][1]
            and middle["gallbladder"][0] < middle["liver"][0]
        )


def test_hounsfield_units(cases):
    means = {name: [] for name in NAMES}
    for image, label, _ in cases:
        for value, name in enumerate(NAMES, 1):
            inside = image[ndimage.binary_erosion(label == value, iterations=1)]
            if name == "stomach":
                inside = inside[inside > -100]  # gas
            means[name].append(inside.mean())
            assert HU[name][0] < means[name][-1] < HU[name][1], (name, means[name])
        assert image[:, 0, 0].mean() == pytest.approx(-1000, abs=3)
        assert 13 < image[:, 0, 0].std() < 22  # noise
        assert image.max() > 400  # bone
    assert np.abs(np.subtract(means["artery"], means["portal vein"])).max() < 30  # no telling apart
    assert np.subtract(means["spleen"], means["liver"]).max() < 35


def test_vessels_are_as_wide_as_in_life():
    label = phantoms.abdomen((100, 110, 190), 1.0, seed=2)[1]
    for value, widest in ((1, (18, 22.5)), (2, (10, 15))):
        vessel = label == value
        radius = ndimage.distance_transform_edt(vessel)
        along = 2 * radius[morphology.skeletonize(vessel)]
        assert widest[0] <= 2 * radius.max() <= widest[1]
        assert 2 <= np.quantile(along, 0.1) <= 5
        pieces, count = ndimage.label(vessel, np.ones((3, 3, 3)))
        assert np.bincount(pieces.ravel())[1:].max() > 0.9 * vessel.sum(), count  # one tree


@pytest.mark.parametrize("seed", range(3))
def test_vena_cava_looks_like_a_vessel_and_has_no_label(cases, seed):
    image, label, spacing = cases[seed]
    subject = _Subject(np.random.default_rng(seed))
    low, high = subject.course(VENA_CAVA)[1:3, :3] @ subject.axes + subject.centre
    along = np.linspace(low, high, 20) / spacing + np.divide(image.shape, 2) - 0.5
    z, y, x = np.rint(along[along[:, 0] > 0]).astype(int).T
    assert len(z) > 5 and not label[z, y, x].any()
    smooth = ndimage.uniform_filter(image.astype(float), 5)[z, y, x]
    artery = np.median(image[label == 1])
    assert 115 < smooth.min() < smooth.max() < 160 and abs(smooth.mean() - artery) < 40


def test_folder_is_a_decathlon_task_reused_or_refused(tmp_path, monkeypatch):
    folder = phantoms.write_abdomens(tmp_path / "abdomens", *TINY, (2, 1), seed=4)
    task = json.loads((folder / "dataset.json").read_text())
    assert task["labels"] == {"0": "background"} | {str(n): name for n, name in enumerate(NAMES, 1)}
    assert task["modality"] == {"0": "CT"} and task["test"] == ["./imagesTs/abdomen_002.nii.gz"]
    assert [entry["label"] for entry in task["training"]] == [
        f"./labelsTr/abdomen_00{n}.nii.gz" for n in (0, 1)
    ]
    image, label, _ = phantoms.abdomen(*TINY, (4, 2))  # the test case's own seed
    read = images.read(folder / "imagesTs" / "abdomen_002.nii.gz")
    assert (
        read.spacing == (6.0, 6.0, 6.0)
        and read.image.GetPixelIDTypeAsString() == "16-bit signed integer"
    )
    np.testing.assert_array_equal(read.array, image)
    np.testing.assert_array_equal(
        images.read(folder / "labelsTs" / "abdomen_002.nii.gz").array, label
    )
    monkeypatch.setattr(phantoms, "abdomen", lambda *_: pytest.fail("made again"))
    assert phantoms.write_abdomens(folder, *TINY, (2, 1), seed=4) == folder
    with pytest.raises(UserError, match=r"abdomens: .*'spacing': 6.0.*'spacing': 5.0"):
        phantoms.write_abdomens(folder, TINY[0], 5, (2, 1), seed=4)
    with pytest.raises(UserError, match=r"holds phantoms with .*'spacing': 6.0"):
        phantoms.write_fetal_heads(folder, TINY[0], (2, 1), seed=4)
