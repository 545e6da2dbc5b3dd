import numpy as np
import pytest
from matplotlib import image as png
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from test_report_tables import cube

from tf_autoctx import metrics
from tf_autoctx.report import figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written."""
    written, savefig = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: written.append(self) or savefig(self, *a, **k)
    )
    return written


def test_agreement_figure(tmp_path, drawn):
    """Differences of 1, 2, 3 and 4: mean 2.5 and SD 1.29; the fifth pair is not finite."""
    figures.agreement(
        tmp_path / "a.png", [11, 22, 33, 44, 50], [10, 20, 30, 40, np.nan], "head volume (mL)"
    )
    assert (
        png.imread(tmp_path / "a.png").shape[:2] == (500, 1100)
        and len(list(tmp_path.iterdir())) == 1
    )
    identity, bland_altman = drawn[0].axes
    np.testing.assert_array_equal(
        identity.collections[0].get_offsets(), [[10, 11], [20, 22], [30, 33], [40, 44]]
    )
    np.testing.assert_array_equal(identity.lines[0].get_xydata(), [[10, 10], [44, 44]])
    assert identity.get_legend().get_title().get_text() == "r = 1.000, 4 cases"
    np.testing.assert_array_equal(bland_altman.collections[0].get_offsets()[0], [10.5, 1])
    assert [line.get_ydata()[0] for line in bland_altman.lines] == pytest.approx(
        [0, 5.03, 2.5, -0.03], abs=0.01
    )
    assert [text.get_text() for text in bland_altman.texts] == [
        "+1.96 SD\n5.03",
        "bias\n2.50",
        "-1.96 SD\n-0.03",
    ]
    with pytest.raises(ValueError, match="1 finite pair"):
        figures.agreement(tmp_path / "b.png", [1, 2], [1, np.inf], "one")


def test_calibration_figure(tmp_path, drawn):
    """Of 4 voxels at 0.8 one is right, of 2 at 0.1 none: ECE (4 * 0.55 + 2 * 0.1) / 6."""
    head = metrics.reliability([0.8, 0.8, 0.8, 0.8, 0.1, 0.1], [1, 0, 0, 0, 0, 0])
    face = metrics.reliability([0.5, 0.5], [1, 0])
    figures.calibration(tmp_path / "a.png", {"head": head, "face": face}, "a title")
    (ax,) = drawn[0].axes
    diagonal, *curves = (line.get_xydata() for line in ax.lines)
    np.testing.assert_array_equal(diagonal, [[0, 0], [1, 1]])
    np.testing.assert_allclose(curves[0], [[0.1, 0], [0.8, 0.25]])
    np.testing.assert_allclose(curves[1], [[0.5, 0.5]])
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["head: ECE 40.00 %", "face: ECE 0.00 %"] and ax.get_title() == "a title"
    assert ax.lines[1].get_color() != ax.lines[2].get_color()


def test_curves_of_all_methods_in_one_picture(tmp_path, drawn):
    runs = {"Orig-S2T": [[60.0]], "S2T": [[50.0, 80.0, 90.0], [70.0, 80.0, 94.0]]}
    figures.curves(tmp_path / "a.png", runs, {"S2T": [[40.0, 30.0, 20.0]]}, "a title")
    (ax,) = drawn[0].axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [
        [60, 60, 60],
        [60, 80, 92],
        [40, 30, 20],
    ]
    assert ax.lines[1].get_color() == ax.lines[2].get_color() != ax.lines[0].get_color()
    assert [line.get_linestyle() for line in ax.lines] == ["-", "-", "--"]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["Orig-S2T (1 run)", "S2T (2 runs)", "S2T, before (1 run)"]
    band = ax.collections[0].get_paths()[0].vertices  # SD of 50 and 70: 14.14
    assert band[:, 1].min() == pytest.approx(60 - 200**0.5)


def test_repeatability_figure(tmp_path, drawn):
    """Two scans 2 mL apart have an SD of 1.41 mL; a patient of one scan has none."""
    groups = ["a", "a", "b", "b", "once"]
    figures.repeatability(
        tmp_path / "a.png",
        {"truth": [5, 5, 6, 6, 7], "level 1": [4, 6, 9, 9, 9]},
        groups,
        "volume (mL)",
    )
    (ax,) = drawn[0].axes
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "truth\nmean 0.00\n0.00 to 0.00",
        "level 1\nmean 0.71\n0.00 to 1.41",
    ]
    points = [found.get_offsets()[:, 1].tolist() for found in ax.collections]
    assert points == [[0, 0], pytest.approx([2**0.5, 0])]
    assert ax.get_ylabel() == "SD within a group (groups: 2)" and (tmp_path / "a.png").exists()
    with pytest.raises(ValueError, match="second scan"):
        figures.repeatability(tmp_path / "b.png", {"level 1": [1, 2]}, ["a", "b"], "volume (mL)")


def has(picture, colour):
    return (np.abs(picture[..., :3] - to_rgb(colour)).max(-1) < 0.02).sum() > 50


@pytest.mark.parametrize("dimensions", [2, 3])
def test_picture_shows_both_outlines(dimensions, tmp_path):
    image = np.random.default_rng(0).normal(size=(12, 16, 20))
    slices = (image, cube(at=6), cube(at=5))
    image, prediction, truth = slices if dimensions == 3 else (volume[5] for volume in slices)
    spacing = (2.0, 1.0, 1.0)[-dimensions:]
    figures.picture(tmp_path / "both.png", image, prediction, truth, spacing, "case_0", {1: "head"})
    figures.picture(tmp_path / "alone.png", image, prediction, None, spacing, "case_0", {1: "head"})
    figures.picture(
        tmp_path / "nothing.png", image, 0 * prediction, 0 * truth, None, "case_0", {1: "head"}
    )
    both, alone = (png.imread(tmp_path / f"{name}.png") for name in ("both", "alone"))
    assert has(both, figures.TRUTH) and has(both, figures.PREDICTION)
    assert has(alone, figures.PREDICTION) and not has(alone, figures.TRUTH)
    assert len(list(tmp_path.iterdir())) == 3  # and no unfinished file


def test_picture_keeps_the_proportions(tmp_path):
    image = np.ones((10, 40))
    figures.picture(tmp_path / "wide.png", image, image, image, (3.0, 1.5), "case_0", {1: "head"})
    outline = (
        np.abs(png.imread(tmp_path / "wide.png")[..., :3] - to_rgb(figures.PREDICTION)).max(-1)
        < 0.02
    )
    outline[-outline.shape[0] // 8 :] = False  # the legend
    high, wide = (np.ptp(np.flatnonzero(outline.any(axis))) for axis in (1, 0))
    assert wide / high == pytest.approx(40 * 1.5 / (10 * 3), rel=0.05)


def test_picture_refuses_another_shape(tmp_path):
    with pytest.raises(ValueError, match=r"\(12, 16, 20\)"):
        figures.picture(
            tmp_path / "a.png",
            np.zeros((12, 16, 21)),
            cube(at=5),
            None,
            (1, 1, 1),
            "case_0",
            {1: "head"},
        )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_picture_of_several_structures(dimensions, tmp_path, monkeypatch):
    """Truth above, prediction below, a colour each.

    The slices pass through what the truth has, the liver alone.
    """
    titles, suptitle = [], Figure.suptitle
    monkeypatch.setattr(
        Figure, "suptitle", lambda self, text, **k: titles.append(text) or suptitle(self, text, **k)
    )
    image = np.random.default_rng(0).normal(size=(12, 16, 20))
    truth, prediction = 7 * cube(at=1), 7 * cube(at=4) + 2 * cube(at=12)
    image, prediction, truth = (v if dimensions == 3 else v[5] for v in (image, prediction, truth))
    structures = {2: "artery", 7: "liver", 9: "vein"}
    figures.picture(tmp_path / "a.png", image, prediction, truth, None, "case_0", structures)
    above, below = np.array_split(png.imread(tmp_path / "a.png"), 2)
    below = below[: -len(below) // 8]  # without the legend
    artery, liver = figures.PALETTE[:2]
    assert has(above, liver) and not has(above, artery)
    assert has(below, liver) and (dimensions == 3 or has(below, artery))
    assert titles == ["case_0   mean DSC 50.0 %"]  # of the structures in the truth
