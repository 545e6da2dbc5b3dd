import dataclasses
import itertools
import json

import numpy as np
import pytest
from scipy import ndimage

from tf_autoctx.data import datasets, images, phantoms
from tf_autoctx.data.phantoms import scanner as scanners
from tf_autoctx.errors import UserError

SIZE = (96, 96)
SCANNERS = {
    "source": phantoms.SOURCE,
    "near": phantoms.NEAR,
    "far": phantoms.FAR,
    "another": phantoms.ANOTHER,
}
each_scanner = pytest.mark.parametrize("scanner", SCANNERS.values(), ids=SCANNERS)


def show_flat(scanner, seed=0):
    """A block of even tissue, as for checking a scanner's quality; without text, as float."""
    echo = np.full((320, 320), 10 ** (-30 / 20), np.float32)
    image = dataclasses.replace(scanner, overlay=False).show(echo, np.random.default_rng(seed))
    return image.astype(float)


def correlation(a, b):
    """Of two images but for their margins."""
    return np.corrcoef(a[20:-20, 20:-20].ravel(), b[20:-20, 20:-20].ravel())[0, 1]


def grain_width(image, axis):
    """Lag in pixels at which the autocorrelation along an axis falls to one half."""
    texture = image - ndimage.uniform_filter(image, 31)
    texture = np.moveaxis(texture[16:-16, 16:-16], axis, 0)
    correlation = [
        np.corrcoef(texture[: -lag or None].ravel(), texture[lag:].ravel())[0, 1]
        for lag in range(12)
    ]
    return np.interp(-0.5, -np.array(correlation), range(12))


def scanned_picture(height=240, width=320, seed=0):
    """Grey values of 30 to 220 in a sector's stead: a frame of black around them."""
    texture = phantoms.smooth_field(np.random.default_rng(seed), (height, width), 12)
    image = np.clip(100 + 40 * texture, 30, 220).astype(np.uint8)
    image[:30] = image[:, :40] = 0
    return image


def test_seed_decides_everything():
    first, again, other = (phantoms.fetal_head_2d(SIZE, seed) for seed in ((3, 1), (3, 1), (3, 2)))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).mean() > 0.01
    assert np.abs(first[0].astype(float) - other[0]).mean() > 10


@pytest.mark.parametrize("seed", range(8))
def test_truth_is_one_ellipse_of_a_heads_size_inside_the_image(seed):
    image, label, spacing = phantoms.fetal_head_2d((120, 160), seed)
    assert image.dtype == label.dtype == np.uint8 and image.shape == label.shape == (120, 160)
    assert spacing == pytest.approx((130 / 120, 130 / 160)) and np.unique(label).tolist() == [0, 1]
    assert label.sum() == label[1:-1, 1:-1].sum() and ndimage.label(label)[1] == 1
    assert 0.22 < label.mean() < 0.45

    points = np.argwhere(label) * spacing
    width, length = 4 * np.sqrt(np.linalg.eigvalsh(np.cov(points.T)))  # the axes of an even ellipse
    assert np.pi / 4 * width * length == pytest.approx(
        label.sum() * np.prod(spacing), rel=0.01
    )  # and it is one
    assert 80 < length < 106 and 0.73 < width / length < 0.87
    assert np.abs(points.mean(0) - 65).max() < 6


@pytest.mark.parametrize(
    "scanner", [phantoms.SOURCE, phantoms.NEAR, phantoms.FAR], ids=["source", "near", "far"]
)
def test_skull_ends_where_the_truth_ends(scanner):
    shells = []  # of 1 mm, from 4 mm outside to 6 mm inside
    for seed in range(6):
        image, label, spacing = phantoms.fetal_head_2d((200, 200), seed, scanner)
        outside, inside = (
            ndimage.distance_transform_edt(side, spacing) for side in (label == 0, label)
        )
        depth = np.where(label, inside, -outside)
        shells.append([image[(depth >= low) & (depth < low + 1)].mean() for low in range(-4, 6)])
    profile = np.mean(shells, 0)
    assert np.argmax(profile) - 4 in (0, 1)
    assert profile.max() > max(*profile[:3], profile[-1]) + 15


def test_geometry_is_the_same_under_every_scanner():
    for seed in range(3):
        (source, label, _), (target, same_label, _) = (
            phantoms.fetal_head_2d(SIZE, seed, dataclasses.replace(scanner, overlay=False))
            for scanner in (phantoms.SOURCE, phantoms.FAR)
        )
        np.testing.assert_array_equal(label, same_label)
        assert np.abs(source.astype(float) - target).mean() > 20
        edges = [
            ndimage.gaussian_gradient_magnitude(image.astype(float), 1)
            for image in (source, target)
        ]
        similar = {
            shift: correlation(edges[0], np.roll(edges[1], shift, (0, 1)))
            for shift in itertools.product(range(-3, 4), repeat=2)
        }
        assert max(similar, key=similar.get) == (0, 0)


def test_size_changes_the_sampling_not_the_head():
    for seed in range(3):
        fine, coarse = (phantoms.fetal_head_2d((n, n), seed) for n in (288, 96))
        assert (fine[1][1::3, 1::3] == coarse[1]).all()
        thirds = fine[0].reshape(96, 3, 96, 3).mean((1, 3))
        assert np.corrcoef(thirds.ravel(), coarse[0].ravel())[0, 1] > 0.8


def test_target_has_coarser_speckle_more_noise_and_more_gain_with_depth():
    source, target = (show_flat(scanner) for scanner in (phantoms.SOURCE, phantoms.FAR))
    for axis in (0, 1):
        assert grain_width(target, axis) > 1.5 * grain_width(source, axis)
    assert grain_width(target, 1) > 1.3 * grain_width(target, 0)  # wider across the beam
    climb = []  # in dB: gamma and dynamic range undone
    for scanner, image in ((phantoms.SOURCE, source), (phantoms.FAR, target)):
        decibel = scanner.dynamic_range * (image / 255) ** (1 / scanner.gamma)
        climb.append(decibel[-40:].mean() - decibel[:40].mean())
    assert climb[1] > 1.3 * climb[0] > 0

    silence = np.full((320, 320), 1e-6, np.float32)
    source, target = (
        dataclasses.replace(scanner, overlay=False).show(silence, np.random.default_rng(0))
        for scanner in (phantoms.SOURCE, phantoms.FAR)
    )
    assert target[-80:].mean() > source[-80:].mean() + 20


def test_target_is_brighter_with_less_skull_contrast_and_text_in_it():
    mean, contrast, marked = {}, {}, {}
    for name in ("source", "near", "far"):
        cases = [phantoms.fetal_head_2d(SIZE, seed, SCANNERS[name]) for seed in range(10)]
        mean[name] = np.mean([image[label > 0].mean() for image, label, _ in cases])
        contrast[name] = np.mean(
            [np.subtract(*np.percentile(image[label > 0], (95, 30))) for image, label, _ in cases]
        )
        marked[name] = np.mean(
            [image[10:-10, 0] > 230 for image, _, _ in cases]
        )  # the scale at the left edge
    assert mean["far"] > mean["source"] + 40
    assert contrast["far"] < 0.8 * contrast["source"]
    assert marked["far"] > 0.15 and marked["source"] < 0.02
    assert mean["source"] < mean["near"] < mean["far"]
    assert contrast["source"] > contrast["near"] > contrast["far"]


def test_untouched_scanner_shows_the_image_as_it_was():
    image = scanned_picture()
    shown = phantoms.Scanner().show(scanners.echoes(image), np.random.default_rng(0))
    np.testing.assert_array_equal(shown, image)


def test_time_gain_is_in_dB_at_the_depth_of_its_sliders():
    echo = np.full((101, 8), 10 ** (-30 / 20), np.float32)
    scanner = phantoms.Scanner(gain=6.0, time_gain=(-12.0, 0.0, 12.0), dynamic_range=60.0)
    shown = scanner.show(echo, np.random.default_rng(0))[:, 3]
    expected = [255 * (60 - 30 + 6 + slider) / 60 for slider in (-12, -6, 0, 12)]
    np.testing.assert_allclose(shown[[0, 25, 50, 100]], expected, atol=1)


@pytest.mark.parametrize("shape", [(240, 320), (97, 64)])
def test_another_scanner_is_seeded_and_keeps_shape_and_type(shape):
    image = scanned_picture(*shape)
    before = image.copy()
    shown, again, other = (
        phantoms.another_scanner(image, seed) for seed in ((4, 0), (4, 0), (4, 1))
    )
    assert shown.dtype == np.uint8 and shown.shape == shape
    np.testing.assert_array_equal(shown, again)
    np.testing.assert_array_equal(image, before)
    assert (shown != other)[30:, 40:].mean() > 0.5
    assert np.abs(shown.astype(float) - image)[30:, 40:].mean() > 20
    assert (
        not shown[:29, :39].any() and shown[31:, 41:].min() > 0
    )  # what was not scanned stays black


@each_scanner
def test_nothing_moves(scanner):
    scanner = dataclasses.replace(scanner, overlay=False)
    for place in (77, 200):
        wall = np.full((320, 320), 30, np.uint8)
        wall[:, place:] = 200
        profile = phantoms.another_scanner(wall, 0, scanner).mean(0)
        low, high = profile[place - 30 : place - 10].mean(), profile[place + 10 : place + 30].mean()
        middle = np.interp(
            (low + high) / 2, profile[place - 10 : place + 10], np.arange(place - 10, place + 10)
        )
        assert high > low + 25 and abs(middle - (place - 0.5)) < 1

        line = np.full((320, 320), 40, np.uint8)
        line[place : place + 5] = 220
        profile = phantoms.another_scanner(line, 0, scanner).mean(1)[place - 10 : place + 15]
        peak = profile - np.linspace(profile[0], profile[-1], len(profile))
        assert abs((peak * np.arange(len(peak))).sum() / peak.sum() - 12) < 1


@each_scanner
def test_sides_are_treated_alike(scanner):
    quiet = dataclasses.replace(
        scanner, speckle=0.0, noise=-np.inf, overlay=False
    )  # what is random falls where it may
    image = scanned_picture()
    np.testing.assert_array_equal(
        phantoms.another_scanner(image[:, ::-1], 0, quiet),
        phantoms.another_scanner(image, 0, quiet)[:, ::-1],
    )


@each_scanner
def test_settings_vary_a_little_from_patient_to_patient(scanner):
    varied = [scanner.varied(np.random.default_rng(seed)) for seed in range(200)]
    for name in ("gain", "dynamic_range", "gamma", "blur", "noise"):
        values = [getattr(one, name) for one in varied]
        assert np.std(values) > 0
        assert np.mean(values) == pytest.approx(getattr(scanner, name), rel=0.05, abs=0.5)
    brightness = [show_flat(one).mean() for one in varied[:12]]
    assert 2 < np.std(brightness) < 20


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8)), np.zeros((8, 8, 1), np.uint8)], ids=["float", "channels"]
)
def test_another_scanner_takes_uint8_images_only(image):
    with pytest.raises(ValueError, match="expected uint8"):
        phantoms.another_scanner(image, 0)


def test_folders_are_decathlon_tasks_and_the_targets_have_the_same_heads(tmp_path):
    heads = {}
    for name, number, scanner in phantoms.HEADS_2D.values():
        kind = {"target": "far"}.get(name, name)
        folder = phantoms.write_fetal_heads_2d(
            tmp_path / "new" / "heads", kind, SIZE, (3, 2), seed=4
        )
        assert folder == tmp_path / "new" / "heads" / name
        task = json.loads((folder / "dataset.json").read_text())
        assert task["tensorImageSize"] == "2D" and task["file_ending"] == ".png"
        assert task["labels"] == {"0": "background", "255": "head"} and task["modality"] == {
            "0": "US"
        }
        assert task["test"] == [f"./imagesTs/{folder.name}_00{n}.png" for n in (3, 4)]
        dataset = datasets.load(folder, seed=0)
        assert dataset.labels == {0: "background", 255: "head"} and len(dataset.test) == 2
        cases = sorted(
            (*dataset.train, *dataset.validation, *dataset.test), key=lambda case: case.name
        )
        for n, case in enumerate(cases):
            image, label = (images.read(path).array for path in (case.image, case.label))
            expected = phantoms.fetal_head_2d(SIZE, (4, n, number), scanner)
            np.testing.assert_array_equal(image, expected[0])
            np.testing.assert_array_equal(label, 255 * expected[1])
            heads.setdefault(kind, []).append(label)
    np.testing.assert_array_equal(heads["near"], heads["far"])
    others = heads["source"] + heads["near"]
    assert len(others) == 10
    assert all((a != b).mean() > 0.005 for n, a in enumerate(others) for b in others[:n])
    assert sorted(path.name for path in folder.parent.iterdir()) == ["near", "source", "target"]


def test_folders_are_reused_or_refused(tmp_path, monkeypatch):
    make = phantoms.fetal_head_2d

    def write(scanner, size=SIZE, cases=(1, 1), seed=4):
        return phantoms.write_fetal_heads_2d(tmp_path, scanner, size, cases, seed)

    source = write("source")
    monkeypatch.setattr(phantoms, "fetal_head_2d", lambda *_: pytest.fail("made again"))
    assert write("source") == source
    for other in ({"seed": 5}, {"cases": (2, 1)}, {"size": (96, 97)}):
        with pytest.raises(UserError, match="source: holds phantoms with"):
            write("source", **other)
    with pytest.raises(UserError, match=r"source: .*'gamma': 1.2.*'gamma': 3.0"):
        scanner = dataclasses.replace(phantoms.SOURCE, gamma=3.0)
        monkeypatch.setitem(phantoms.HEADS_2D, "source", ("source", 1, scanner))
        write("source")
    monkeypatch.undo()

    def interrupted(size, seed, scanner):
        assert not target.exists()
        if seed[1]:
            raise KeyboardInterrupt
        return make(size, seed, scanner)

    target = write("far")
    written = (target / "imagesTs" / "target_001.png").read_bytes()
    target.rename(tmp_path / "aside")
    monkeypatch.setattr(phantoms, "fetal_head_2d", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("far")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aside", "source"]
    monkeypatch.undo()
    write("far")
    assert (target / "imagesTs" / "target_001.png").read_bytes() == written
