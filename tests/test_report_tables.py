import csv
import json
import math
import re

import numpy as np
import pytest

from tf_autoctx import errors, files, metrics, spreadsheets
from tf_autoctx.report import tables


def cube(at, edge=6):
    mask = np.zeros((12, 16, 20), bool)
    mask[3 : 3 + edge, 5 : 5 + edge, at : at + edge] = True
    return mask


def rows(method, shifts, structure="head"):
    """A row per case: a cube shifted by so many voxels of 1 mm; None predicts nothing."""
    found = []
    for case, shift in enumerate(shifts):
        prediction = cube(at=5, edge=0) if shift is None else cube(at=5 + shift)
        row = {
            "system": "fetal_head",
            "method": method,
            "case": f"case_{case}",
            "group": "",
            "structure": structure,
        }
        found.append(row | metrics.compare(prediction, cube(at=5), (1, 1, 1)))
    return found


@pytest.fixture
def results():
    false = {
        "system": "fetal_head",
        "method": "level 2",
        "case": "empty",
        "group": "",
        "structure": "head",
    }
    false |= metrics.compare(cube(at=5), cube(at=5, edge=0), (1, 1, 1))
    return rows("level 1", [3, 3, 3, None]) + rows("level 2", [0, 1, 2, 3]) + [false]


def test_files(results, tmp_path):
    tables.write(tmp_path / "new" / "folder", results)
    files = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert files == ["cases.csv", "scores.csv", "summary.json"]
    with open(tmp_path / "new" / "folder" / "cases.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["case"] for line in lines] == [row["case"] for row in results]
    assert float(lines[0]["DSC_percent"]) == pytest.approx(50)
    assert lines[3]["Hdb_mm"] == "inf" and lines[3]["Conf_percent"] == "-inf"

    def refuse(constant):
        pytest.fail(f"summary.json has {constant}")

    text = (tmp_path / "new" / "folder" / "summary.json").read_text()
    summary = json.loads(text, parse_constant=refuse)
    first, second = (summary["methods"][method]["head"] for method in ("level 1", "level 2"))
    assert (first["n"], first["n_missed"], first["n_false"]) == (4, 1, 0)
    assert (second["n"], second["n_missed"], second["n_false"]) == (5, 0, 1)
    assert first["metrics"]["DSC_percent"]["mean"] == pytest.approx(
        37.5
    )  # the missed object counts as 0
    assert first["metrics"]["Hdb_mm"] == {
        "mean": 3,
        "sd": 0,
        "min": 3,
        "max": 3,
        "ci_low": 3,
        "ci_high": 3,
        "n": 3,
    }
    (pair,) = summary["paired"]
    assert (pair["method"], pair["against"], pair["structure"]) == ("level 2", "level 1", "head")
    assert pair["metrics"]["DSC_percent"]["n"] == 4  # the case of one method alone is left out
    assert pair["metrics"]["DSC_percent"]["mean_difference"] == pytest.approx(
        (50 + 100 / 3 + 50 / 3 + 50) / 4
    )


def test_nothing_finite_is_null(tmp_path):
    tables.write(tmp_path, rows("level 1", [None]))
    hdb = json.loads((tmp_path / "summary.json").read_text())["methods"]["level 1"]["head"][
        "metrics"
    ]["Hdb_mm"]
    assert hdb == {
        "mean": None,
        "sd": None,
        "min": None,
        "max": None,
        "ci_low": None,
        "ci_high": None,
        "n": 0,
    }


def test_table(results):
    text = tables.table(results)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 150
    assert " ".join(lines[0].split()) == (
        "method n missed false DSC (%) Conf (%) Jacc (%) Adb (mm) Hdb (mm) volume error (%)"
    )
    assert lines[2].split()[:8] == ["level", "1", "4", "1", "0", "37.50", "±", "25.00"]
    assert lines[3].split()[:2] == ["[12.50,", "50.00]"]
    assert (
        "level 2 against level 1: DSC +37.50 % [" in lines[-1]
        and "p = 0.1250 (Wilcoxon over 4 cases)" in lines[-1]
    )
    assert "nan" not in text and "inf" not in text


def test_table_of_several_structures():
    text = tables.table(rows("ours", [0, 1]) + rows("ours", [2], structure="brain"))
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["method", "structure"]
    assert (
        lines[4].split()[:6] == ["ours", "brain", "1", "0", "0", "66.67"] and "against" not in text
    )
    assert "nan" not in text


def cells(text):
    """{(heading, line): words} of a table of Dice scores."""
    found, heading = {}, None
    for line in text.splitlines():
        if line.startswith("  "):
            name, *words = line.split()
            found[heading, name] = words
        else:
            heading = line.split(":")[0]
    return found


def test_dice_table():
    """Cubes of 6 voxels shifted by 0, 1, 2, 3 have Dice scores of 100, 83.33, 66.67 and 50 %."""
    false = {
        "system": "fetal_head",
        "method": "new",
        "case": "case_1",
        "group": "",
        "structure": "spleen",
    }
    false |= metrics.compare(cube(at=5), cube(at=5, edge=0), (1, 1, 1)) | {"DSC_percent": np.nan}
    old = rows("old", [0, 3], "liver") + rows("old", [3], "spleen")
    new = rows("new", [0, 0], "liver") + rows("new", [0], "spleen") + [false]
    text = tables.dice_table(old + new + rows("other", [2], "portal vein"))
    lines, found = text.splitlines(), cells(text)
    assert lines[0].split() == ["Dice", "(%)", "liver", "spleen", "portal", "vein", "Avg."]
    assert found["old", "mean"] == ["75.00", "50.00", "-", "62.50"]  # Avg. of (100 + 50) / 2 and 50
    assert found["old", "SD"] == ["35.36", "-", "-", "17.68"]
    assert found["old", "min"] == ["50.00", "50.00", "-", "50.00"]
    assert found["old", "max"] == ["100.00", "50.00", "-", "75.00"]
    assert found["old", "n"] == ["2", "1", "0", "2"] and found["old", "false"] == ["0", "0", "0"]
    assert found["new", "mean"] == ["100.00", "100.00", "-", "100.00"]
    assert found["new", "n"] == ["2", "1", "0", "2"] and found["new", "false"] == ["0", "1", "0"]
    told = "new against old: Avg. +37.50 % [+25.00, +50.00], Wilcoxon over 2 cases"
    assert told in lines and "over cases, which says nothing of other trainings" in text
    assert found["new against old", "change"] == ["+25.00", "+50.00", "-", "+37.50"]
    assert found["new against old", "p"] == [
        "1.0000",
        "1.0000",
        "-",
        "0.5000",
    ]  # 2 / 2 ** n for n gains
    # The tests of "other" have no case: three p are corrected, 3 x 0.5 is at most 1.
    assert found["new against old", "Holm"] == ["1.0000", "1.0000", "-", "1.0000"]
    assert (
        "other against old: no case in common" in lines
        and "other against new: no case in common" in lines
    )
    assert "nan" not in text


def test_dice_table_averages_what_both_methods_have():
    text = tables.dice_table(
        rows("old", [3], "liver") + rows("new", [3], "liver") + rows("new", [0], "spleen")
    )
    assert cells(text)["new", "mean"] == ["50.00", "100.00", "75.00"]
    assert cells(text)["new against old", "change"] == ["+0.00", "-", "+0.00"]


def test_dice_table_of_the_paper_fits():
    organs = ("artery", "portal vein", "liver", "spleen", "stomach", "gallbladder", "pancreas")
    methods = ("level 1", "level 2, separate", "level 2, end-to-end", "level 2, without context")
    text = tables.dice_table(
        [row for m in methods for organ in organs for row in rows(m, [0, 1, 2], organ)]
    )
    assert max(map(len, text.splitlines())) <= 150
    assert (
        len([line for line in text.splitlines() if " against " in line]) == 6
    )  # every pair of four
    assert cells(text)["level 1", "mean"] == ["83.33"] * 8
    assert cells(text)["level 1", "SD"] == ["16.67"] * 7 + ["16.67"]


def test_a_case_twice_is_refused(results):
    for function in (tables.summarize, tables.dice_table):
        with pytest.raises(ValueError, match="level 1, head, case_0"):
            function(results + results[:1])


def test_read_is_the_inverse_of_write(results, tmp_path):
    results[-1]["DSC_percent"] = np.nan
    tables.write(tmp_path, results)
    found = tables.read(tmp_path)
    assert math.isnan(found[-1].pop("DSC_percent")) and math.isnan(results[-1].pop("DSC_percent"))
    assert found == results and found[3]["Hdb_mm"] == np.inf


def test_the_long_table_by_hand(tmp_path):
    """A line per row and metric; a metric that a row lacks has no line."""
    about = {"system": "embryo", "method": "initial", "group": "litter 2"}
    body = {
        "case": "a, left",
        "structure": "body",
        "DSC_percent": 87.5,
        "volume_mL": 1.25,
        "truth_volume_mL": 1.0,
    }
    other = {
        "case": "b",
        "structure": "body",
        "DSC_percent": 0.0,
        "volume_mL": 0.0,
        "truth_volume_mL": 2.0,
    }
    given = [
        about | body,
        about | other | {"Hdb_mm": np.inf},
        about | other | {"case": "c", "group": ""},
    ]
    tables.write(tmp_path, given)
    assert (tmp_path / "scores.csv").read_text().splitlines() == [
        "system,method,case,group,structure,metric,value",
        'embryo,initial,"a, left",litter 2,body,DSC_percent,87.5',
        'embryo,initial,"a, left",litter 2,body,volume_mL,1.25',
        'embryo,initial,"a, left",litter 2,body,truth_volume_mL,1.0',
        "embryo,initial,b,litter 2,body,DSC_percent,0.0",
        "embryo,initial,b,litter 2,body,volume_mL,0.0",
        "embryo,initial,b,litter 2,body,truth_volume_mL,2.0",
        "embryo,initial,b,litter 2,body,Hdb_mm,inf",
        "embryo,initial,c,,body,DSC_percent,0.0",
        "embryo,initial,c,,body,volume_mL,0.0",
        "embryo,initial,c,,body,truth_volume_mL,2.0",
    ]
    found = tables.read(tmp_path)
    assert found == given and [list(row)[5:] for row in found] == [
        list(row)[5:] for row in given
    ]  # metrics in order


def test_names_with_commas_stay_apart(tmp_path):
    """Methods are called "S2T, iteration 0", and a file may be called "iteration 0, a"."""
    about = {
        "system": "renderer",
        "group": "",
        "structure": "head",
        "area_pixel": 1.0,
        "truth_area_pixel": 1.0,
    }
    given = [
        about | {"method": "S2T", "case": "iteration 0, a", "DSC_percent": 1.0},
        about | {"method": "S2T, iteration 0", "case": "a", "DSC_percent": 2.0},
    ]
    tables.write(tmp_path, given)
    assert tables.read(tmp_path) == given


def test_a_table_sorted_by_metric_says_the_same(tmp_path):
    """As a person's spreadsheet may leave it: a missed head, its BPD before its volume now."""
    (missed,) = rows("level 1", [None])
    missed |= {"BPD_mm": np.nan, "truth_BPD_mm": 6.0, "BPD_error_mm": np.nan}
    tables.write(tmp_path, [missed])
    header, *lines = (tmp_path / "scores.csv").read_text().splitlines()
    text = "\r\n".join([header, *sorted(lines, key=lambda line: line.split(",")[5])])
    (tmp_path / "scores.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert tables.summarize(tables.read(tmp_path))["methods"]["level 1"]["head"]["n_missed"] == 1


def test_a_2d_case_with_and_one_without_millimetres_have_one_size():
    pixels = {"area_pixel": 4, "truth_area_pixel": 4}
    assert (
        metrics.size_of({"area_mm2": 1, "truth_area_mm2": 1} | pixels).name
        == metrics.size_of(pixels).name
        == "area_pixel"
    )


HEADER = b"system,method,case,group,structure,metric,value\n"


@pytest.mark.parametrize(
    "text, told",
    [
        (None, "no such file"),
        (b"", "has the columns ; expected system, method"),
        (b"method,case,group,structure,DSC_percent\na,b,,c,100\n", "has the columns method, case"),
        (
            HEADER + b"s,a,b,,c,DSC_percent,100\ns,a,d,,c,DSC_percent,much\n",
            "line 3: DSC_percent of a, d, c is 'much'",
        ),
        (
            HEADER + b"s,a,b,,c,DSC_percent,100\ns,a,b,,c,DSC_percent,99\n",
            "line 3: DSC_percent of a, b, c a second",
        ),
        (HEADER + b"s,a,b,,c,DSC_percent\n", "line 2: has not one value per column"),
        (HEADER + b"s,a,b,,c,DSC_percent,100,1\n", "line 2: has not one value per column"),
        (
            HEADER + b"s,a,b,,c,DSC_percent,100\n\nt,a,b,,c,volume_mL,1\n",
            "line 4: a, b, c has another system",
        ),
        (
            HEADER + b"s,a,b,,c,DSC_percent,100\ns,a,b,g,c,volume_mL,1\n",
            "line 3: a, b, c has another system or group",
        ),
        (HEADER + b"s,a,b,,c,DSC_percent,100\ns,a,b,,c,truth_volume_mL,1\n", "a, b, c has no size"),
        (
            HEADER + b"s,a,b,,c,DSC_percent,100\ns,a,b,,c,volume_mL,1\n",
            "a, b, c has no truth_volume_mL",
        ),
        (
            HEADER + b"s,a,b,,c,volume_mL,1\ns,a,b,,c,truth_volume_mL,1\n",
            "a, b, c has no DSC_percent",
        ),
        (b"\xff\x00", "not a text file"),
    ],
)
def test_reading_something_else_is_one_sentence(text, told, tmp_path):
    if text is not None:
        (tmp_path / "scores.csv").write_bytes(text)
    with pytest.raises(errors.UserError, match=f"scores.csv.*{told}"):
        tables.read(tmp_path)


def test_an_output_that_is_a_file_is_one_sentence(results, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(errors.UserError, match="taken"):
        tables.write(tmp_path / "taken", results)


FORMULAS = [
    "=1+1",
    "=HYPERLINK(A1)",
    "+cmd",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\uff1d1",
    "'=1",
    "''=1",
    "case;=1",  # ends a cell in many countries
    'case;"=1"',
    "case\n=1",
    "case\r-x",
]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_name_is_a_formula_and_reading_gives_it_back(name, tmp_path):
    """Every cell of the files, whatever a spreadsheet takes for the end of a cell."""
    (row,) = rows(name, [0], structure=name)
    row |= {"case": name, "group": name, "system": name}
    tables.write(tmp_path, [row], failures={name: name})
    assert tables.read(tmp_path) == [row]
    for file in ("scores.csv", "cases.csv", "failed.csv"):
        text = (tmp_path / file).read_bytes().decode()
        cells = [cell for line in csv.reader(text.splitlines(keepends=True)) for cell in line]
        assert sum(name.lstrip() in cell.replace("'", "") for cell in cells) or "'" in name
        for cell in [*cells, *re.split("[,;\t\r\n]", text)]:
            shown = cell.strip('" \u00a0')
            number = shown.lstrip("+-").replace(".", "").replace("e-", "")
            assert not shown.startswith(tuple("=+-@\uff1d")) or number.isdigit() or number == "inf"


@pytest.mark.parametrize("name", ["-5", "+1.5e-3", "a-b", "x = 1", "it's", "'quoted'", "'", ""])
def test_numbers_and_harmless_names_stay_as_they_are(name):
    assert spreadsheets.escaped(name) == spreadsheets.unescaped(name) == name


def test_escapes_are_undone_whatever_the_name():
    letters = np.array(list("'\"=+-@;\t\r\n a1.\uff1d\u00a0"))
    generator = np.random.default_rng(0)
    for length in generator.integers(8, size=3000):
        name = "".join(generator.choice(letters, length))
        assert spreadsheets.unescaped(spreadsheets.escaped(name)) == name


def test_a_set_of_tables_is_replaced_together(results, tmp_path):
    curves = {("level 1", "head"): metrics.reliability([0.5], [1])}
    tables.write(tmp_path, results, failures={"other": "cut short"}, curves=curves)
    assert (tmp_path / "calibration.csv").exists()
    assert (tmp_path / "failed.csv").read_text() == "case,reason\nother,cut short\n"
    tables.write(tmp_path, results[:4])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cases.csv",
        "scores.csv",
        "summary.json",
    ]
    tables.write(tmp_path, [], failures={"a": "gone"})
    assert [path.name for path in tmp_path.iterdir()] == ["failed.csv"]


@pytest.mark.parametrize("stop", range(3))
def test_a_set_cut_short_is_not_read(stop, results, tmp_path, monkeypatch):
    """Killed between the files: scores.csv, which is read, comes last."""
    tables.write(tmp_path, results[:4])
    replace, calls = files.os.replace, []

    def killed(partial, path):
        calls.append(path.name)
        if len(calls) > stop:
            raise KeyboardInterrupt
        replace(partial, path)

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        tables.write(tmp_path, results)
    assert "scores.csv" not in [path.name for path in tmp_path.iterdir()]
    with pytest.raises(errors.UserError, match="no such file"):
        tables.read(tmp_path)


def test_a_name_that_is_no_text_is_written_in_its_bytes(tmp_path):
    tables.write(tmp_path, [], failures={"a\udcff": "a\udcff.nii: no text"})
    assert (tmp_path / "failed.csv").read_text() == "case,reason\na\\udcff,a\\udcff.nii: no text\n"


def test_scores_of_a_case_by_hand():
    """Liver 1: half of it is called spleen 2. Kidney 3 is made up, 4 is nowhere."""
    truth, prediction = np.zeros((4, 4), int), np.zeros((4, 4), int)
    truth[0], truth[3] = 1, 2
    prediction[0] = [1, 1, 2, 2]
    prediction[2, 2] = 3
    names = {1: "liver", 2: "spleen", 3: "kidney", 4: "heart"}
    liver, spleen, kidney = tables.scores(prediction, truth, None, names)
    assert [row["structure"] for row in (liver, spleen, kidney)] == ["liver", "spleen", "kidney"]
    assert liver["DSC_percent"] == pytest.approx(100 * 2 * 2 / (2 + 4))
    assert spleen["DSC_percent"] == 0 and spleen["Hdb_pixel"] == pytest.approx(13**0.5)
    assert (kidney["area_pixel"], kidney["truth_area_pixel"]) == (1, 0)
    assert math.isnan(kidney["DSC_percent"]) and math.isnan(kidney["area_error_percent"])
