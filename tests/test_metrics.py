import time

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial import distance

from tf_autoctx import biometry, metrics
from tf_autoctx.systems.shared import confidence

INF = float("inf")


def cube(at, edge=10, shape=(24, 24, 24)):
    mask = np.zeros(shape, np.uint8)
    mask[5 : 5 + edge, 5 : 5 + edge, at : at + edge] = 1
    return mask


def brute_force_surface(mask):
    """Object voxels with a background neighbour, one voxel at a time."""
    padded, found = np.pad(mask, 1), np.zeros_like(mask)
    for voxel in np.argwhere(mask):
        steps = [step for axis in np.eye(mask.ndim, dtype=int) for step in (axis, -axis)]
        found[tuple(voxel)] = any(not padded[tuple(voxel + 1 + step)] for step in steps)
    return found


@pytest.mark.parametrize("shift", [0, 1, 3, 8])
def test_hand_computed_scores_of_a_shifted_cube(shift):
    scores = metrics.compare(cube(at=5 + shift), cube(at=5), spacing=(1.0, 2.0, 0.5))
    dsc = (10 - shift) / 10
    assert list(scores) == [
        "DSC_percent", "Conf_percent", "Jacc_percent", "precision_percent", "recall_percent",
        "Adb_mm", "Hdb_mm", "Hdb95_mm", "volume_mL", "truth_volume_mL", "volume_error_percent",
    ]  # fmt: skip
    assert scores["DSC_percent"] == pytest.approx(100 * dsc)
    assert scores["Conf_percent"] == pytest.approx(100 * (3 * dsc - 2) / dsc)
    assert scores["Jacc_percent"] == pytest.approx(100 * (10 - shift) / (10 + shift))
    assert scores["precision_percent"] == scores["recall_percent"] == pytest.approx(100 * dsc)
    assert scores["Hdb_mm"] == pytest.approx(0.5 * min(shift, 8) if shift else 0)
    assert (
        scores["volume_mL"] == scores["truth_volume_mL"] == pytest.approx(1.0)
    )  # 1000 voxels of 1 mm3
    assert scores["volume_error_percent"] == 0


def test_mean_dice_counts_the_classes_of_the_truth_alone():
    truth, prediction = (
        np.array([[1, 1, 1, 0], [3, 3, 0, 0]]),
        np.array([[1, 1, 0, 0], [0, 3, 3, 2]]),
    )
    assert metrics.mean_dice(prediction, truth) == pytest.approx((4 / 5 + 1 / 2) / 2)


def test_mean_distance_of_two_lines():
    truth, prediction = np.zeros((2, 3, 12)), np.zeros((2, 3, 12))
    truth[0, 0, 0:4] = prediction[0, 0, 2:8] = 1
    scores = metrics.compare(prediction, truth, spacing=(1, 1, 3))
    # Truth to prediction 2 1 0 0 voxels, prediction to truth 0 0 1 2 3 4 voxels, of 3 mm.
    assert scores["Adb_mm"] == pytest.approx(3 * (3 / 4 + 10 / 6) / 2)
    assert scores["Hdb_mm"] == pytest.approx(12)
    assert scores["Hdb95_mm"] == pytest.approx(3 * 3.75)
    assert scores["precision_percent"] == pytest.approx(100 * 2 / 6)
    assert scores["recall_percent"] == pytest.approx(50)
    assert scores["volume_error_percent"] == pytest.approx(50)
    assert scores["volume_mL"] == pytest.approx(0.018)


@pytest.mark.parametrize("spacing", [(0.7, 1.3), (0.4, 1.0, 2.5)])
@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_brute_force(spacing, seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(5, 9, len(spacing))
    a, b = rng.random(shape) < 0.6, rng.random(shape) < 0.3
    points = [np.argwhere(brute_force_surface(mask)) * spacing for mask in (a, b)]
    table = distance.cdist(*points)
    to_b, to_a = metrics.surface_distances(a, b, spacing)
    np.testing.assert_allclose(np.sort(to_b), np.sort(table.min(1)), atol=1e-6)
    np.testing.assert_allclose(np.sort(to_a), np.sort(table.min(0)), atol=1e-6)
    scores = metrics.compare(a, b, spacing)
    assert scores["Adb_mm"] == pytest.approx(
        (table.min(1).mean() + table.min(0).mean()) / 2, abs=1e-6
    )
    assert scores["Hdb_mm"] == pytest.approx(max(table.min(1).max(), table.min(0).max()), abs=1e-6)
    percentiles = np.percentile(table.min(1), 95), np.percentile(table.min(0), 95)
    assert scores["Hdb95_mm"] == pytest.approx(max(percentiles), abs=1e-6)
    for tolerance in (0, 0.7, 1.0, 2.5, 9.0):
        near = (table.min(1) < tolerance + 1e-6).sum() + (table.min(0) < tolerance + 1e-6).sum()
        scored = metrics.compare(a, b, spacing, tolerance)
        assert scored["NSD_percent"] == pytest.approx(100 * near / sum(table.shape))
    assert "NSD_percent" not in scores and "NSD_percent" not in metrics.compare(a, b, None, 1.0)
    swapped = metrics.compare(b, a, spacing)
    for symmetric in (
        "DSC_percent",
        "Conf_percent",
        "Jacc_percent",
        "Adb_mm",
        "Hdb_mm",
        "Hdb95_mm",
    ):
        assert swapped[symmetric] == pytest.approx(scores[symmetric])


def test_the_surface_dice_of_moved_cubes_by_hand():
    """Edges of 4 voxels, moved by one voxel of 2 mm along x."""
    a, b = (np.zeros((6, 6, 8), bool) for _ in range(2))
    a[1:5, 1:5, 1:5], b[1:5, 1:5, 2:6] = True, True
    # 56 of 64 voxels are boundary. Of a, those in b's boundary: 3 columns of 12 outline voxels
    # (x = 2, 3, 4) and of x = 2, b's own face, the 4 inner ones, which are no boundary of a.
    within = 100 * 2 * 36 / 112
    assert metrics.compare(a, b, (1, 1, 2), 0)["NSD_percent"] == pytest.approx(within)
    # The outline at x = 1 is 2 mm off, its 4 inner voxels too; the face at x = 4 has b's outline 1
    # or 2 mm beside it.
    assert metrics.compare(a, b, (1, 1, 2), 2)["NSD_percent"] == 100
    empty = np.zeros_like(a)
    assert metrics.compare(a, empty, (1, 1, 2), 5)["NSD_percent"] == 0
    assert metrics.compare(empty, empty, (1, 1, 2), 5)["NSD_percent"] == 100


def random_mask(rng, kind, shape):
    """A small object: "ragged" touches the border, "inside" does not; a "cavity", one "voxel"."""
    mask = np.zeros(shape, bool)
    if kind == "voxel":
        mask[tuple(rng.integers(shape))] = True
    elif kind == "cavity":
        mask[tuple(slice(rng.integers(1, 3), n - rng.integers(0, 3)) for n in shape)] = True
        mask[tuple(slice(3, n - 3 + rng.integers(2)) for n in shape)] = False
    else:
        texture = ndimage.gaussian_filter(rng.normal(size=shape), 1.0)
        mask = texture >= np.quantile(texture, rng.uniform(0.4, 0.8))
        if kind == "inside":
            mask &= ~metrics.surface(np.ones(shape, bool))
            mask[tuple(n // 2 for n in shape)] = True
    return mask


def itk_surface(image):
    """Boundary voxels of a mask by SimpleITK's erosion; outside the image is background."""
    padded = sitk.ConstantPad(image, [1] * image.GetDimension(), [1] * image.GetDimension(), 0)
    surface = padded - sitk.BinaryErode(padded, [1] * image.GetDimension(), sitk.sitkCross)
    return sitk.RegionOfInterest(surface, image.GetSize(), [1] * image.GetDimension())


@pytest.mark.parametrize("dimensions", [2, 3])
def test_scores_agree_with_simpleitk_and_brute_force(dimensions):
    rng, kinds = np.random.default_rng(dimensions), ("ragged", "inside", "cavity", "voxel")
    touching = hollow = 0
    for number in range(200):
        shape, spacing = rng.integers(8, 14, dimensions), rng.uniform(0.3, 2.5, dimensions)
        masks = [random_mask(rng, kinds[k % 4], shape) for k in (number, number // 4)]
        scores = metrics.compare(*masks, spacing)
        touching += any((mask & metrics.surface(np.ones(shape, bool))).any() for mask in masks)
        hollow += any((ndimage.binary_fill_holes(mask) & ~mask).any() for mask in masks)

        pair = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
        for image in pair:
            image.SetSpacing(spacing[::-1].tolist())
        overlap, swapped = (
            sitk.LabelOverlapMeasuresImageFilter(),
            sitk.LabelOverlapMeasuresImageFilter(),
        )
        overlap.Execute(*pair)
        swapped.Execute(*reversed(pair))
        expected = {
            "DSC_percent": 100 * overlap.GetDiceCoefficient(),
            "Jacc_percent": 100 * overlap.GetJaccardCoefficient(),
            "precision_percent": 100 * (1 - swapped.GetFalseNegativeError()),
            "recall_percent": 100 * (1 - overlap.GetFalseNegativeError()),
        }

        # Its Hausdorff distance is that of filled objects: the surfaces alone make it one of
        # surfaces.
        surfaces = [itk_surface(image) for image in pair]
        hausdorff = sitk.HausdorffDistanceImageFilter()
        hausdorff.Execute(*surfaces)
        table = distance.cdist(
            *(np.argwhere(sitk.GetArrayViewFromImage(surface)) * spacing for surface in surfaces)
        )
        directed = table.min(axis=1), table.min(axis=0)
        expected["Adb_mm"] = np.mean([distances.mean() for distances in directed])
        expected["Hdb_mm"] = max(distances.max() for distances in directed)
        expected["Hdb95_mm"] = max(np.percentile(distances, 95) for distances in directed)
        assert expected["Hdb_mm"] == pytest.approx(hausdorff.GetHausdorffDistance(), abs=1e-6)
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert touching > 50 and hollow > 50


def test_an_inner_cavity_and_the_edge_of_the_array_have_a_surface():
    full = np.ones((5, 5, 5), bool)
    hollow = full.copy()
    hollow[2, 2, 2] = False
    assert metrics.surface(full).sum() == 125 - 27
    assert metrics.surface(hollow).sum() == 125 - 27 + 6
    assert metrics.compare(hollow, full)["Hdb_pixel"] == 1


@pytest.mark.parametrize(
    "sizes, overlap, conf, distance, volume_error",
    [((0, 0), 100, 100, 0, 0), ((0, 5), 0, -INF, INF, 100), ((5, 0), 0, -INF, INF, INF)],
)
def test_empty_masks(sizes, overlap, conf, distance, volume_error):
    prediction, truth = (cube(at=5, edge=edge) for edge in sizes)
    scores = metrics.compare(prediction, truth, (1, 1, 1))
    for name in ("DSC", "Jacc", "precision", "recall"):
        assert scores[f"{name}_percent"] == overlap
    assert scores["Conf_percent"] == conf
    assert scores["Adb_mm"] == scores["Hdb_mm"] == scores["Hdb95_mm"] == distance
    assert scores["volume_error_percent"] == volume_error
    assert metrics.dice(prediction, truth) == overlap / 100


def test_objects_apart_have_no_overlap_but_a_distance():
    scores = metrics.compare(cube(at=0, edge=3), cube(at=20, edge=3), (1, 1, 1))
    assert scores["DSC_percent"] == 0 and scores["Conf_percent"] == -INF and scores["Hdb_mm"] == 20


def test_names_tell_the_unit():
    square = cube(at=5)[8]
    assert metrics.compare(square, square, (2.0, 3.0))["area_mm2"] == 600
    assert metrics.compare(square, square)["truth_area_pixel"] == 100
    assert metrics.compare(cube(at=5), cube(at=6))["Hdb_pixel"] == 1


def test_any_nonzero_value_is_object():
    assert metrics.compare(7 * cube(at=5), cube(at=5) > 0)["DSC_percent"] == 100


@pytest.mark.parametrize(
    "shapes, spacing, quoted",
    [
        (((4, 4, 4), (4, 4, 5)), (1, 1, 1), r"\(4, 4, 4\).*\(4, 4, 5\)"),
        (((4,), (4,)), None, r"\(4,\)"),
        (((4, 4, 4), (4, 4, 4)), (1, 2), r"\(1, 2\).*\(4, 4, 4\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, spacing, quoted):
    with pytest.raises(ValueError, match=quoted):
        metrics.compare(np.ones(shapes[0]), np.ones(shapes[1]), spacing)


def test_distances_of_an_empty_mask_are_refused():
    with pytest.raises(ValueError, match="empty"):
        metrics.surface_distances(cube(at=5), cube(at=5, edge=0))


def test_a_whole_head_scores_within_three_seconds():
    z, y, x = np.ogrid[:388, :258, :440]
    truth = (((z - 194) / 130) ** 2 + ((y - 129) / 95) ** 2 + ((x - 220) / 160) ** 2 <= 1).astype(
        np.uint8
    )
    prediction = np.roll(truth, (5, -4, 6), axis=(0, 1, 2))
    seconds = []
    while len(seconds) < 3 and min(seconds, default=INF) >= 3:
        start = time.perf_counter()
        scores = metrics.compare(prediction, truth, (0.4, 0.5, 0.6))
        seconds.append(time.perf_counter() - start)
    assert 90 < scores["DSC_percent"] < 99
    assert min(seconds) < 3


def test_summary_of_known_values():
    summary = metrics.summarize([1, 2, 3, 4, INF, float("nan")])
    assert (
        summary["mean"] == 2.5 and summary["min"] == 1 and summary["max"] == 4 and summary["n"] == 4
    )
    assert summary["sd"] == pytest.approx((5 / 3) ** 0.5)
    values = np.random.default_rng(1).normal(10, 2, 400)
    summary = metrics.summarize(values)
    # For many cases the bootstrap interval is mean -+ 1.96 SD / sqrt(n).
    assert summary["ci_high"] - summary["mean"] == pytest.approx(
        1.96 * summary["sd"] / 20, rel=0.05
    )
    assert summary["mean"] - summary["ci_low"] == pytest.approx(1.96 * summary["sd"] / 20, rel=0.05)
    assert summary == metrics.summarize(values, seed=0) != metrics.summarize(values, seed=1)


def test_summary_of_one_and_of_no_case():
    one, none = metrics.summarize([3.0]), metrics.summarize([INF])
    assert one["mean"] == one["ci_low"] == 3 and np.isnan(one["sd"]) and one["n"] == 1
    assert np.isnan(none["mean"]) and none["n"] == 0


@pytest.mark.filterwarnings("error")
def test_paired_comparison():
    b = np.arange(10.0)
    result = metrics.paired(b + np.linspace(1, 2, 10), b)
    assert result["mean_difference"] == pytest.approx(1.5)
    assert 1 < result["ci_low"] < 1.5 < result["ci_high"] < 2
    assert result["p"] == pytest.approx(2 / 2**10)  # all ten signs alike
    assert metrics.paired(b, b)["p"] == 1 and metrics.paired(b, b)["mean_difference"] == 0
    assert metrics.paired([1, INF, 3], [0, 1, INF])["n"] == 1
    assert np.isnan(metrics.paired([INF], [1])["p"])
    with pytest.raises(ValueError, match=r"\(3,\).*\(1,\)"):
        metrics.paired([1, 2, 3], [1])


@pytest.mark.filterwarnings("error")
def test_paired_runs_by_hand():
    """Runs with the means 1 to 5: t = 3 / (sqrt(2.5) / sqrt(5)) = 4.243 of 4 degrees of freedom."""
    runs = [dict.fromkeys("abcd", mean) for mean in (1.0, 2.0, 3.0, 4.0, 5.0)]
    result = metrics.paired_runs(runs, shared=True)
    assert result["mean_difference"] == 3 and result["n"] == 5
    assert result["p"] == pytest.approx(0.0132, abs=1e-4)
    # Means of five draws of 1 to 5: SD sqrt(2 / 5), nearly normal.
    assert result["ci_low"] == pytest.approx(3 - 1.96 * 0.4**0.5, abs=0.05)
    assert result["ci_high"] == pytest.approx(3 + 1.96 * 0.4**0.5, abs=0.05)
    four = metrics.paired_runs(runs[:4], shared=True)
    assert np.isnan(four["p"]) and np.isfinite(four["ci_low"])
    one = metrics.paired_runs(runs[:1], shared=True)
    assert one["mean_difference"] == 1 and np.isnan(one["ci_low"]) and np.isnan(one["p"])
    none = metrics.paired_runs([], shared=True)
    assert np.isnan(none["mean_difference"]) and none["n"] == 0
    for always, p in ((0.0, 1), (1.0, 0)):
        assert metrics.paired_runs([{"a": always, "b": always}] * 5, shared=True)["p"] == p


@pytest.mark.parametrize(
    "overlap, p",
    [
        (0, 0.0132),  # t = 3 / sqrt(2.5 * 1 / 5) = 4.243
        (1 / 4, 0.0474),  # five folds: t = 3 / sqrt(2.5 * (1 / 5 + 1 / 4)) = 2.828
        (1, 0.1583),  # as much tested as learnt from: t = 3 / sqrt(2.5 * 6 / 5) = 1.732
    ],
)
def test_runs_that_share_training_cases_count_less(overlap, p):
    """The variance of the mean by Nadeau and Bengio: 2.5 times 1 / 5 + n_test / n_train; of 4
    degrees of freedom."""
    runs = [{f"case {number}": number} for number in (1.0, 2.0, 3.0, 4.0, 5.0)]
    result = metrics.paired_runs(runs, shared=False, overlap=overlap)
    assert result["p"] == pytest.approx(p, abs=1e-4) and result["mean_difference"] == 3


def test_the_bootstrap_of_runs_is_crossed_with_images():
    """Of images that all runs share, which ones are drawn does not average out over runs."""
    runs = [{"a": 0.0, "b": 10.0}] * 6
    shared, own = (metrics.paired_runs(runs, shared=shared) for shared in (True, False))
    assert (shared["ci_low"], shared["ci_high"]) == (0, 10)  # both draws the same image: a half
    # Twelve draws of 0 or 10 have a mean of SD 5 / sqrt(12).
    assert own["ci_high"] - own["ci_low"] == pytest.approx(2 * 1.96 * 5 / 12**0.5, abs=1)
    varied = [{"a": 0.1 * run, "b": 3.7 - run**2, "c": 1.3} for run in range(5)]
    for shared_ in (True, False):
        first, again, other = (metrics.paired_runs(varied, shared_, seed=n) for n in (0, 0, 1))
        assert first == again and first["ci_low"] != other["ci_low"]


@pytest.mark.filterwarnings("error")
def test_an_image_that_a_run_lacks_is_shared_by_the_others():
    """Both runs have the means 2; of the draws of three images b alone is in both, and every mean
    of a run that has one is of its own images."""
    uneven = [{"a": 1.0, "b": 2.0, "c": 3.0}, {"b": 2.0}]
    for shared in (True, False):
        result = metrics.paired_runs(uneven, shared=shared)
        assert result["mean_difference"] == 2 and 1 <= result["ci_low"] < 2 < result["ci_high"] <= 3
    alone = metrics.paired_runs([{"a": 1.0}, {"b": 5.0}], shared=True)
    assert (alone["ci_low"], alone["ci_high"]) == (1, 5)


def test_holm():
    """Four tests: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which is below the one before it."""
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.5, np.nan, 0.02]) == pytest.approx([0.5, np.nan, 0.04], nan_ok=True)
    assert metrics.holm([0.7, 0.6]) == pytest.approx([1, 1])
    assert metrics.holm([]).shape == (0,)


@pytest.mark.filterwarnings("error")
def test_agreement():
    truth = np.array([1.0, 2, 3, 4])
    result = metrics.agreement(2 * truth, truth)  # differences 1 2 3 4
    assert result["pearson_r"] == pytest.approx(1) and result["p"] < 1e-6 and result["bias"] == 2.5
    assert result["limit_low"] == pytest.approx(2.5 - 1.96 * (5 / 3) ** 0.5)
    assert result["limit_high"] == pytest.approx(2.5 + 1.96 * (5 / 3) ** 0.5)
    assert metrics.agreement([1, 2, 3], [1, 3, 2])["pearson_r"] == pytest.approx(0.5)
    constant = metrics.agreement([5, 5, 5], [1, 2, 3])
    assert np.isnan(constant["pearson_r"]) and constant["bias"] == 3


@pytest.mark.filterwarnings("error")
def test_repeatability():
    result = metrics.repeatability([1, 3, 10, 10, 10, 99], ["a", "a", "b", "b", "b", "once"])
    assert result["sd"] == {"a": pytest.approx(2**0.5), "b": 0}
    assert (
        result["mean"] == pytest.approx(2**0.5 / 2)
        and result["min"] == 0
        and result["max"] == pytest.approx(2**0.5)
    )
    assert np.isnan(metrics.repeatability([1, 2], ["a", "b"])["mean"])
    with pytest.raises(ValueError):
        metrics.repeatability([1, 2], ["a"])


def ball(dimensions):
    return np.linalg.norm(np.indices((16,) * dimensions) - 8, axis=0) < 6


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("spaced", [True, False])
def test_every_column_is_declared(dimensions, spaced):
    mask, spacing = ball(dimensions), (0.5,) * dimensions if spaced else None
    scores = metrics.compare(mask, mask, spacing)
    if spaced:
        scores |= biometry.compare(mask, mask, spacing)
    columns = {name: metrics.column(name) for name in scores}
    assert all(metrics.METRICS[column.metric.name] == column.metric for column in columns.values())
    assert all(column.name == name for name, column in columns.items())
    # What is measured stands beside the truth's, and in no other way.
    truths = {column.truth for column in columns.values()} - {""}
    assert truths == {name for name, column in columns.items() if column.of_truth}
    assert truths == {name for name in scores if "truth_" in name} and len(truths) == 1 + 3 * spaced
    assert metrics.size_of(scores).name in scores and metrics.size_of(scores).truth in scores


def test_a_metric_of_another_system(monkeypatch):
    monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))
    reach = metrics.Metric("reach", ("mm",), "neither", ("charts",))
    assert metrics.column("reach_mm").title == "reach mm" and metrics.column("reach_mm").is_score
    metrics.register(reach)
    metrics.register(reach, metrics.METRICS["DSC"])  # once more is no fault
    column, true = metrics.column("reach_mm"), metrics.column("truth_reach_mm")
    assert column.title == "reach (mm)" and column.truth == true.name and true.of_truth
    assert not column.is_score and not true.is_score and "reach" in metrics.shown("charts")
    with pytest.raises(ValueError, match=r"declared before as .*expected another name"):
        metrics.register(metrics.Metric("DSC", ("mm",), "lower"))


def test_the_table_of_metrics_is_written_out():
    """Every row and column that is declared is one that a comparison gives."""
    written = set()
    for dimensions in (2, 3):
        mask = ball(dimensions)
        written |= {
            *metrics.compare(mask, mask),
            *metrics.compare(mask, mask, (1,) * dimensions, 1),
        }
        written |= {*biometry.compare(mask, mask, (1,) * dimensions)}
    sure = {"head": confidence.Confidence(0.5, None)}
    written |= confidence.scores(sure, "head").keys()
    declared = [name for m in metrics.METRICS.values() for name in metrics.columns(m)]
    assert written == set(declared) and len(declared) == len(written)


def test_directions():
    better = {name: metric.better for name, metric in metrics.METRICS.items()}
    assert better == {
        **dict.fromkeys(("DSC", "Conf", "Jacc", "precision", "recall", "NSD"), "higher"),
        **dict.fromkeys(("Adb", "Hdb", "Hdb95", "volume_error", "area_error"), "lower"),
        **dict.fromkeys(("BPD_error", "OFD_error", "HC_error", "ECE"), "lower"),
        **dict.fromkeys(("volume", "area", "BPD", "OFD", "HC", "uncertainty"), "neither"),
    }
    # A worse segmentation moves each of them that way.
    truth, spacing = cube(at=5), (1.0, 1.0, 1.0)
    good, bad = (metrics.compare(cube(at=5 + n, edge=10 + n), truth, spacing) for n in (1, 3))
    for name in good:
        column = metrics.column(name)
        if column.is_score and column.metric.name != "recall":  # the truth is cut off alike
            assert (bad[name] > good[name]) == (column.metric.better == "lower"), name


@pytest.mark.parametrize(
    "name, title, truth, is_score",
    [
        ("DSC_percent", "DSC (%)", "", True),
        ("Hdb95_pixel", "Hdb95 (pixel)", "", True),
        ("volume_error_percent", "volume error (%)", "", True),
        ("area_mm2", "area (mm2)", "truth_area_mm2", False),
        ("truth_volume_mL", "truth volume (mL)", "", False),
        ("BPD_mm", "BPD (mm)", "truth_BPD_mm", False),
        ("HC_error_mm", "HC error (mm)", "", True),
        ("uncertainty_percent", "uncertainty (%)", "", False),  # the truth has none
        ("ECE_percent", "ECE (%)", "", True),
        ("my_score", "my score", "", True),  # not declared
    ],
)
def test_a_column(name, title, truth, is_score):
    column = metrics.column(name)
    assert (column.title, column.truth, column.is_score) == (title, truth, is_score)


def test_where_metrics_are_shown():
    table = ("DSC", "Conf", "Jacc", "Adb", "Hdb", "NSD", "volume_error", "area_error")
    assert metrics.shown("table") == table
    assert metrics.shown("charts") == ("DSC", "Adb", "Hdb", "NSD", "volume_error", "area_error")
    assert metrics.shown("measurements") == ("BPD_error", "OFD_error", "HC_error")


def test_the_box_around_a_mask():
    mask = np.zeros((20, 30), bool)
    mask[3, 10] = mask[7, 19] = True
    assert metrics.box_around(mask) == (slice(3, 8), slice(10, 20))
    # Edges of 5 and 10: a tenth of them is half a voxel, rounded up, and one.
    assert metrics.box_around(mask, 0.1) == (slice(2, 9), slice(9, 21))
    assert mask[metrics.box_around(mask, 1.0)].shape == (13, 30)  # no further than the mask


def test_reliability_by_hand():
    probability = [[0.0, 0.05, 0.31], [0.39, 1.0, 0.95]]
    truth = [[0, 1, 1], [0, 1, 1]]
    bins = metrics.reliability(probability, truth)
    expected = np.zeros((metrics.BINS, 3))
    expected[0] = 2, 0.05, 1
    expected[3] = 2, 0.7, 1
    expected[9] = 2, 1.95, 2
    np.testing.assert_allclose(bins, expected)
    np.testing.assert_allclose(
        metrics.reliability_curve(bins), [[0.025, 0.35, 0.975], [0.5, 0.5, 1]]
    )
    # Off by 0.475, 0.15 and 0.025.
    assert metrics.calibration_error(bins) == pytest.approx(100 * (0.475 + 0.15 + 0.025) / 3)
    assert np.isnan(metrics.calibration_error(0 * bins))
    with pytest.raises(ValueError, match="one shape"):
        metrics.reliability([0.5, 0.5], [1])


def test_what_is_as_often_true_as_it_says_is_calibrated():
    rng = np.random.default_rng(0)
    probability = rng.random((60, 60, 60))
    truth = rng.random(probability.shape) < probability
    assert metrics.calibration_error(metrics.reliability(probability, truth)) < 0.5
    # Sure of everything, and right in 7 of 10: off by 0.2 where it says 0.9, and 0.5 where 0.2.
    sure, right = np.full(1000, 0.9), np.arange(1000) % 10 < 7
    assert metrics.calibration_error(metrics.reliability(sure, right)) == pytest.approx(20)
    both = metrics.reliability(sure, right) + metrics.reliability(0 * sure + 0.2, right)
    assert metrics.calibration_error(both) == pytest.approx((20 + 50) / 2)


@pytest.mark.parametrize(
    "a, b, rho, p, n",
    [
        # One order of 24, and its reverse.
        ([1, 2, 3, 4], [90, 80, 70, -5], -1, 2 / 24, 4),
        ([1, 2, 3, 4], [1, 10, 100, 1e4], 1, 2 / 24, 4),
        # Squares of the ranks' differences are 1, 1, 0; half of all orders are as far out.
        ([1, 2, 3], [2, 1, 3], 0.5, 1, 3),
        ([1, 2, np.nan, 3, 4], [9, 8, 7, np.inf, 6], -1, 2 / 6, 3),
        ([1, 2], [2, 1], np.nan, np.nan, 2),
        ([1, 1, 1], [2, 1, 3], np.nan, np.nan, 3),
    ],
)
def test_rank_correlation_by_hand(a, b, rho, p, n):
    answer = metrics.rank_correlation(a, b)
    assert answer == pytest.approx({"rho": rho, "p": p, "n": n}, nan_ok=True)


def test_rank_correlation_of_many_cases():
    rng = np.random.default_rng(1)
    a = rng.random(60)
    related, other = metrics.rank_correlation(a, a + rng.random(60)), rng.random(60)
    assert 0.4 < related["rho"] < 0.95 and related["p"] < 0.001
    assert metrics.rank_correlation(a, other)["p"] > 0.05


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_slice_is_measured_as_an_image(axis):
    prediction, truth = np.zeros((2, 30, 30), bool)
    prediction[5:20, 6:20], truth[5:20, 5:20] = True, True
    flat = metrics.compare(prediction, truth, (0.5, 0.25))
    spacing = np.insert([0.5, 0.25], axis, 999.0)  # nnU-Net's of such an axis
    volume = metrics.compare(*(np.expand_dims(mask, axis) for mask in (prediction, truth)), spacing)
    for name in ("Adb_mm", "Hdb_mm", "Hdb95_mm", "DSC_percent"):
        assert volume[name] == flat[name]
    # A column of 15 voxels, 0.25 mm off, of boundaries of 54 and 56; its corners touch the others'.
    assert flat["Hdb_mm"] == 0.25
    assert flat["Adb_mm"] == pytest.approx(0.25 * (13 / 54 + 15 / 56) / 2)


def test_a_row_of_voxels_has_two_ends():
    mask = np.zeros((1, 1, 9), bool)
    mask[..., 2:7] = True
    moved = np.roll(mask, 1, -1)
    distances = metrics.surface_distances(mask, moved, (1.0, 1.0, 2.0))
    assert [d.tolist() for d in distances] == [[2, 2], [2, 2]]
    assert metrics.surface_distances(mask[..., 2:3], mask[..., 2:3])[0].tolist() == [0]
