"""How measurements of a subject repeat: without truth of predictions, with truth of scores."""

import json
import re

import numpy as np
import pytest
import running
from test_report_page import embedded, evaluation

from tf_autoctx import metrics, spreadsheets
from tf_autoctx.report import page, repeatability, tables

# Two scans of anna and bea each, three of clara, one of dora; of one of clara's nothing was found.
VOLUMES = {"a1": 100, "a2": 104, "b1": 200, "b2": 198, "c1": 300, "c2": 306, "c3": 0, "d1": 400}
NAMES = {"a": "anna", "b": "bea", "c": "clara", "d": "dora"}


def predictions(folder, volumes=VOLUMES, columns=("volume_mL", "BPD_mm")):
    """What `autoctx-predict --measurements` writes; BPD is a tenth of the volume."""
    lines = [
        {"image": scan, "structure": "head", columns[0]: volume}
        | ({columns[1]: volume / 10 or "nan"} if len(columns) > 1 else {})
        for scan, volume in volumes.items()
    ]
    folder.mkdir()
    spreadsheets.write(folder / "measurements.csv", lines, ("image", "structure", *columns))
    return folder


def subjects(folder, names=VOLUMES, header="case,subject"):
    rows = [f"{name},{NAMES.get(name[0], name)}" for name in names]
    (folder / "subjects.csv").write_text("\n".join([header, *rows]))
    return folder / "subjects.csv"


def report(tmp_path, *folders, **flags):
    given = [f"--{name}={value}" for name, value in flags.items()]
    listed = ",".join(map(str, folders))
    running.call("report", f"--evaluations={listed}", f"--output={tmp_path / 'page.html'}", *given)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def table_of(text):
    """{measurement and method: the other cells} of what is printed."""
    lines = [re.split(r"\s{2,}", line) for line in text.splitlines()]
    return {(line[0], line[2]): line[3:] for line in lines if len(line) == 11}


def test_by_hand():
    """Variances of 8, 2 and 18 within, each of one degree of freedom: 28 / 3. Between, means of
    102, 199 and 303: 2 (99.33^2 + 2.33^2 + 101.67^2) / 2."""
    values, groups = [100, 104, 200, 198, 300, 306, 7], [*"aabbccd"]
    told = metrics.repeatability(values, groups)
    within, between = 28 / 3, 99.3333**2 + 2.3333**2 + 101.6667**2
    assert told["within_sd"] == pytest.approx(within**0.5)
    assert told["coefficient"] == pytest.approx(1.96 * (2 * within) ** 0.5)
    cv = 100 * ((8 / 102**2 + 2 / 199**2 + 18 / 303**2) / 3) ** 0.5
    assert told["cv_percent"] == pytest.approx(cv)
    assert told["icc"] == pytest.approx((between - within) / (between + within), rel=1e-5)
    assert (told["n"], told["scans"]) == (3, 6)


def test_groups_of_other_sizes_weigh_by_their_degrees_of_freedom():
    """Variances 1 of three scans (2 degrees) and 8 of two (1): 10 / 3; size (5 - 13 / 5) / 1."""
    told = metrics.repeatability([1, 2, 3, 10, 14], [*"aaabb"])
    within, between = 10 / 3, 3 * (2 - 6) ** 2 + 2 * (12 - 6) ** 2
    assert told["within_sd"] == pytest.approx(within**0.5)
    assert told["icc"] == pytest.approx((between - within) / (between + 1.4 * within))


@pytest.mark.filterwarnings("error")
def test_what_too_few_scans_do_not_tell():
    one = metrics.repeatability([1, 3], ["a", "a"])
    assert one["within_sd"] == pytest.approx(2**0.5) and np.isnan(one["icc"])
    none = metrics.repeatability([1, 3], ["a", "b"])
    assert none["n"] == 0 and np.isnan([none[name] for name in ("within_sd", "icc")]).all()
    assert metrics.repeatability([2, 2, 2, 2], [*"aabb"])["cv_percent"] == 0
    # Scans that differ as subjects do: nothing is between these, 2 / 3 less than nothing.
    assert metrics.repeatability([1, 3, 1, 3], [*"aabb"])["icc"] == -1


def test_predictions_without_truth(tmp_path, capsys):
    folder = predictions(tmp_path / "results")
    text = report(tmp_path, folder, subjects=subjects(tmp_path))
    printed = table_of(capsys.readouterr().out)
    expected = ["3", "6", "201.33", "3.055", "2.828 (1.414 to 4.243)", "8.468", "1.84", "0.9991"]
    assert printed["volume_mL", "results"] == expected
    # Diameters are a tenth: so are their SDs; CV and ICC are the same.
    diameters = ["0.306", "0.283 (0.141 to 0.424)", "0.847", "1.84", "0.9991"]
    assert printed["BPD_mm", "results"][3:] == diameters
    volume, _ = embedded(text, "figures")
    points = volume["data"][0]
    assert points["x"] == [102, 199, 303] and points["y"] == [4, -2, 6]
    assert points["text"] == ["anna: a2 - a1", "bea: b2 - b1", "clara: c2 - c1"]
    levels = [line["y"][0] for line in volume["data"] if line["type"] == "scatter"][1:]
    assert levels == pytest.approx([8 / 3, 8.468, -8.468], abs=1e-3)
    (box,) = [line for line in volume["data"] if line["type"] == "box"]
    assert box["x"] == ["anna"] * 2 + ["bea"] * 2 + ["clara"] * 2
    # Of all subjects first the one whose scans lie farthest apart for its size
    rows = re.findall(r'<td class="text" data-value="(anna|bea|clara)">', text)
    assert rows[:1] == ["anna"] and set(rows) == {"anna", "bea", "clara"}


def test_the_order_of_the_table_is_that_of_the_scans(tmp_path):
    folder = predictions(tmp_path / "results")
    text = report(tmp_path, folder, subjects=subjects(tmp_path, reversed(VOLUMES)))
    points = embedded(text, "figures")[0]["data"][0]
    assert dict(zip(points["text"], points["y"])) == {
        "clara: c1 - c2": -6,
        "bea: b1 - b2": 2,
        "anna: a1 - a2": -4,
    }


def test_two_models_stand_side_by_side(tmp_path, capsys):
    other = {scan: volume + 10 * (scan == "a2") for scan, volume in VOLUMES.items()}
    folders = predictions(tmp_path / "one"), predictions(tmp_path / "two", other)
    report(tmp_path, *folders, subjects=subjects(tmp_path))
    printed = table_of(capsys.readouterr().out)
    assert printed["volume_mL", "two"][4].endswith("to 9.899)")  # 14 / sqrt(2)
    assert printed["volume_mL", "one"][4].endswith("to 4.243)")


def test_scans_that_nobody_names_are_left_out(tmp_path, capsys):
    names = [name for name in VOLUMES if name[0] in "ab"]
    report(tmp_path, predictions(tmp_path / "results"), subjects=subjects(tmp_path, names))
    assert table_of(capsys.readouterr().out)["volume_mL", "results"][:2] == ["2", "4"]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"header": "case,patient"}, "has the columns case,patient; expected a CSV file with"),
        ({"names": ["a1", "a1"]}, "line 3: has a1 a second time; expected each scan once"),
        ({"names": []}, "subjects.csv: names no scan; expected a CSV file with the columns"),
        (
            {"names": ["x1", "x2"]},
            "lacks 2 of the 2 scans of --subjects (x1, x2); expected all of them, by names such as",
        ),
        (
            {"names": [*VOLUMES, "a3", "b3", "c4", "d2", "d3", "d4"]},
            "lacks 6 of the 14 scans of --subjects (a3, b3, c4, d2, d3, ...); expected all",
        ),
        ({"names": ["a1", "b1"]}, "no subject has two scans; expected repeated scans"),
    ],
)
def test_bad_subjects_are_one_sentence(tmp_path, capsys, change, told):
    folder = predictions(tmp_path / "results")
    with pytest.raises(SystemExit):
        report(tmp_path, folder, subjects=subjects(tmp_path, **change))
    assert told in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_predictions_need_subjects(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report(tmp_path, predictions(tmp_path / "results"))
    told = "error: --subjects: "
    assert told in (printed := capsys.readouterr().err)
    assert "results does not tell which scans are of one subject; expected a CSV file" in printed


def test_pixels_are_refused(tmp_path, capsys):
    folder = predictions(tmp_path / "results", columns=("volume_pixel",))
    with pytest.raises(SystemExit):
        report(tmp_path, folder, subjects=subjects(tmp_path))
    told = "a1 was measured in pixels, as its file gives no mm; expected mm, such as of"
    assert told in capsys.readouterr().err


def test_predictions_and_scores_are_not_mixed(tmp_path, capsys):
    folders = evaluation(tmp_path / "run"), predictions(tmp_path / "results")
    with pytest.raises(SystemExit):
        report(tmp_path, *folders, subjects=subjects(tmp_path))
    assert "results has no scores, others have; expected one kind" in capsys.readouterr().err


def test_an_evaluation_tells_it_beside_its_truth(tmp_path, capsys):
    """Cubes of 8 voxels of 2 mm3 (the head) have the same volume wherever they lie."""
    folder = evaluation(tmp_path / "run")
    assert "Repeatability" not in report(tmp_path, folder)
    assert capsys.readouterr().out == ""
    names = ["head_1", "head_2"]
    (tmp_path / "subjects.csv").write_text("\n".join(["case,subject", *(f"{n},x" for n in names)]))
    text = report(tmp_path, folder, subjects=tmp_path / "subjects.csv")
    assert '<section id="repeatability">' in text
    assert "groups of the cases, which holds where the cases of a group are repeated scans" in text
    printed = table_of(capsys.readouterr().out)
    assert {method for _, method in printed} - {"method"} == {"level 1", "level 2", "truth"}
    assert printed["volume_mL", "truth"][:4] == ["1", "2", "0.13", "0.000"]
    with pytest.raises(SystemExit):
        report(tmp_path, folder, subjects=subjects(tmp_path))
    assert "names none of the cases of" in capsys.readouterr().err


def test_of_scans_of_an_evaluation_the_first_in_the_file_is_the_earlier(tmp_path):
    """The head, of 1.024 mL, is twice as large in head_2."""
    folder = evaluation(tmp_path / "run", {"head_1": (0, 0), "head_2": (0, 0), "other": (0, 0)})
    rows = [row for row in tables.read(folder) if row["case"] != "head_2"]
    larger = [row for row in tables.read(folder) if row["case"] == "head_2"]
    names = "volume_mL", "truth_volume_mL"
    rows += [row | {name: 2 * row[name] for name in names} for row in larger]
    tables.write(folder, rows)
    for order, change in ((("head_1", "head_2"), 1.024), (("head_2", "head_1"), -1.024)):
        file = tmp_path / "subjects.csv"
        file.write_text("\n".join(["case,subject", *(f"{name},x" for name in order)]))
        drawn = embedded(report(tmp_path, folder, subjects=file), "figures")
        titled = [figure for figure in drawn if "of two scans" in json.dumps(figure["layout"])]
        points = titled[0]["data"][0]  # of the head
        assert points["text"] == [f"x: {order[1]} - {order[0]}"]
        assert points["y"] == [pytest.approx(change)]


def test_groups_of_the_rows_are_subjects():
    about = {"system": "s", "method": "m", "structure": "head", "truth_volume_mL": 1.0}
    rows = [
        about | {"case": case, "group": group, "volume_mL": volume}
        for case, group, volume in (("a", "g", 10.0), ("b", "g", 12.0), ("c", "", 5.0))
    ]
    method, truth = repeatability.of_rows(rows)
    assert (method.method, truth.method) == ("m", "truth")
    assert method.groups == {"g": {"a": 10.0, "b": 12.0}}
    assert method.pairs == [("g", "b - a", 11.0, 2.0)] and truth.pairs[0][3] == 0


def test_the_spread_of_the_scores(tmp_path):
    """Cubes shifted by 1, 0 and 3 (level 2) and by 2, 4 and 3 (level 1): Dice of the head 87.5, 100
    and 62.5, or 75, 50 and 62.5 %."""
    folder = evaluation(tmp_path / "run")
    page.write(tmp_path / "page.html", [folder])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    section = text[text.index('<section id="distributions">') :]
    lines = re.findall(r"<tr >(.*?)</tr>", section, re.DOTALL)
    rows = [re.findall(r'data-value="(.*?)"', line) for line in lines if "strip" in line]
    assert len(rows) == 4
    by_name = {(row[0], row[1]): row[2:] for row in rows}
    lowest, *numbers = by_name["level 1", "head"]
    assert lowest.startswith("head_2 50.0, &lt;i&gt;&amp;3 62.5, head_1 75.0")
    assert [float(number) for number in numbers] == [50, 56.25, 62.5, 68.75, 75, 0, 3]
    assert [float(number) for number in by_name["level 2", "head"][1:]] == [
        *(62.5, 75, 87.5, 93.75, 100),
        *(0, 3),
    ]
    quartiles = [float(row[4]) for row in rows]
    assert quartiles == sorted(quartiles)  # the worst first
    strip = next(line for line in lines if "level 2" in line and ">head<" in line)
    places = sorted(float(x) for x in re.findall(r'<circle cx="(.*?)"', strip))
    assert places == [2 * dsc + 5 for dsc in (62.5, 87.5, 100)]


def test_quartiles_and_what_is_below():
    told = metrics.distribution([36, 41, 61, 64, 75, 86, np.nan, np.inf], 50)
    assert list(told.values()) == [36, 46, 62.5, 72.25, 86, 6, 2]
    assert metrics.distribution([50, 60], 50)["n_below"] == 0
    nothing = json.loads(json.dumps(metrics.distribution([], 50)))
    assert nothing["n"] == 0 and np.isnan(nothing["median"])
