"""The page of an evaluation: what it says, and how it behaves in a real browser."""

import functools
import html.parser
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tf_autoctx import errors, metrics
from tf_autoctx.report import calibration, figures, repeated, tables, views
from tf_autoctx.report import page as report_page

ROOT = pathlib.Path(__file__).parents[1]
SHAPE, SPACING = (20, 24, 28), (2.0, 1.0, 1.0)
STRUCTURES = {1: "head", 2: "<b>face</b>"}
CONFIG = {
    "system": "fetal_head",
    "flags": {"steps": 3},
    "data_fingerprint": "ab",
    "versions": {"keras": "3.15"},
}
SHIFTS = {"head_1": (2, 1), "head_2": (4, 0), "<i>&3": (3, 3)}  # of level 1 and level 2, in voxels


def label(at, values=(1, 2)):
    """A cube of 8 voxels (the head) at x = `at`, a cube of 4 voxels (the face) behind it."""
    found = np.zeros(SHAPE, np.uint8)
    found[5:13, 6:14, at : at + 8], found[5:9, 16:20, at : at + 4] = values
    return found


def evaluation(folder, shifts=SHIFTS, cases=None, truth_at=6, dimensions=3, probability=True):
    """A run with an evaluation of levels 1 and 2, whose predictions are shifted along x."""
    rows, cases = [], cases or shifts
    image = np.random.default_rng(0).normal(100, 2, SHAPE) + 100 * (label(truth_at) > 0)

    def flat(volume):
        return volume if dimensions == 3 else volume[7]

    spacing = SPACING if dimensions == 3 else None
    for case in cases:
        answers, truth = {}, flat(label(truth_at))
        for level, shift in enumerate(shifts[case], start=1):
            prediction = flat(label(truth_at + shift))
            answers[f"level {level}"] = {"label": prediction}
            if probability:
                maps = {name: 0.9 * (prediction == value) for value, name in STRUCTURES.items()}
                answers[f"level {level}"]["probability"] = maps
        for (method, answer), (value, name) in itertools.product(
            answers.items(), STRUCTURES.items()
        ):
            score = metrics.compare(answer["label"] == value, truth == value, spacing)
            about = {
                "system": "fetal_head",
                "method": method,
                "case": case,
                "group": "",
                "structure": name,
            }
            rows.append(about | score)
        views.write(
            folder / "evaluation" / "views" / f"{case}.npz",
            views.of(flat(image), truth, answers, spacing, STRUCTURES),
        )
    rows.sort(key=lambda row: row["method"])
    tables.write(folder / "evaluation", rows)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for level in (1, 2):
        (folder / f"level_{level}").mkdir(exist_ok=True)
        (folder / f"level_{level}" / "history.csv").write_text(
            "epoch,loss,val_DSC\n0,1.5,0.25\n1,0.5,NA\n"
        )
    return folder / "evaluation"


class Elements(html.parser.HTMLParser):
    """What a page holds: [(tag, {attribute: value})]."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def written(tmp_path, *folders):
    report_page.write(tmp_path / "report.html", folders)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def embedded(page, name):
    (text,) = re.findall(
        f'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL
    )
    return json.loads(text)


def test_the_page_needs_nothing_else(tmp_path):
    page = written(tmp_path, evaluation(tmp_path / "run"))
    links = [
        value
        for _, found in Elements(page).found
        for key, value in found.items()
        if key in ("src", "href")
    ]
    assert links and all(link.startswith("#") for link in links)
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(|@import|url\(", page)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


def test_numbers_are_those_of_the_report(tmp_path):
    folder = evaluation(tmp_path / "run")
    page = written(tmp_path, folder)
    # Cubes of 8 voxels shifted by 1, 0 and 3: Dice 87.5, 100 and 62.5 %.
    values = tables.summarize(tables.read(folder))["methods"]["level 2"]["head"]["metrics"][
        "DSC_percent"
    ]
    mean, interval = tables.spread(values)
    assert mean == "83.33 ± 19.09" and f"<td>{mean}<small>{interval}</small></td>" in page
    assert "level 2 against level 1, head: DSC +20.83 %" in page
    figures = embedded(page, "figures")
    assert (
        len(figures) == 2 + 4 + 2
    )  # agreement of each structure, boxes of DSC, Adb, Hdb and volume, loss and DSC
    loss, dsc = figures[-2:]
    assert [line["name"] for line in loss["data"]] == ["level 1", "level 2"]
    boxes = {box["name"]: box["marker"]["color"] for box in figures[2]["data"]}
    assert {
        line["name"]: line["line"]["color"] for line in loss["data"]
    } == boxes  # a stage looks like its method
    assert dsc["data"][0]["y"] == [0.25, None]
    assert "&quot;3.15&quot;" in page and "--steps" in page


def test_a_table_of_several_runs_is_tested_over_runs(tmp_path):
    """Five runs of one case each, which gain 1 to 5 points."""
    scored = [
        row for row in tables.read(evaluation(tmp_path / "run")) if row["structure"] == "head"
    ]
    old, new = (
        next(row for row in scored if row["method"] == f"level {level}") for level in (1, 2)
    )
    rows = []
    for seed in range(5):
        gain = {"DSC_percent": old["DSC_percent"] + seed + 1}
        rows += [repeated.named(f"seed {seed}", row) for row in (old, new | gain)]
    rows.sort(key=lambda row: row["method"])
    tables.write(tmp_path / "table", rows, test=repeated.over_runs(rows))
    page = written(tmp_path, tmp_path / "table")
    assert "level 2 against level 1: DSC +3.00 %" in page
    assert "p = 0.0132 (paired t over 5 runs)" in page and "Wilcoxon over" not in page


def test_the_worst_case_comes_first(tmp_path):
    page = written(tmp_path, evaluation(tmp_path / "run"))
    found = re.findall(
        r'<tr data-view="(\d)" data-structure="(\d)"><td class="text" data-value="(.*?)"', page
    )
    # The face is 4 voxels wide: a shift of 3 leaves 25 %, of 1 75 %.
    assert found == [
        ("2", "2", "&lt;i&gt;&amp;3"),
        ("2", "1", "&lt;i&gt;&amp;3"),
        ("0", "2", "head_1"),
        ("0", "1", "head_1"),
        ("1", "1", "head_2"),
        ("1", "2", "head_2"),
    ]


# Of level 2, whose DSC of the head is 87.5, 100 and 62.5 %
UNSURE = {"head_1": 30.0, "head_2": 5.0, "<i>&3": 60.0}


def unsure(folder, values=UNSURE):
    """An evaluation that tells how sure its structures are, its faces twice as unsure."""
    rows = tables.read(folder)
    for row in rows:
        twice = 1 + (row["structure"] != "head")
        row |= {"uncertainty_percent": twice * values[row["case"]], "ECE_percent": 3.0}
    # 4 voxels at 0.8 of which one is right, and one at 0.05 that is not: ECE (2.2 + 0.05) / 5.
    bins = metrics.reliability([0.8] * 4 + [0.05], [1, 0, 0, 0, 0])
    keys = itertools.product(("level 1", "level 2"), STRUCTURES.values())
    tables.write(folder, rows, curves=dict.fromkeys(keys, bins))
    return folder


def test_how_right_it_is_to_be_sure(tmp_path):
    page = written(tmp_path, unsure(evaluation(tmp_path / "run")))
    (section,) = re.findall('<section id="uncertainty">(.*?)</section>', page, re.DOTALL)
    table = section.split("<h3>")[0]
    lines = re.findall("<tr >(.*?)</tr>", table.split("<tbody>")[1])
    assert len(lines) == 4  # of two methods and structures
    cells = re.findall(r'data-value="([^"]*)">', lines[2])
    assert cells[:2] == ["level 2", "head"]
    # Three cases in the opposite order: 1 of 6 orders on each side.
    assert [float(cell) for cell in cells[2:]] == pytest.approx([45, 95 / 3, -1, 1 / 3, 3])
    assert "Spearman" in table and ">45.00<" in lines[2]
    charts = embedded(page, "figures")[:2]
    assert len(embedded(page, "figures")) == 2 + 2 + 4 + 2
    for chart, factor in zip(charts, (1, 2)):
        lines = {(line.get("name"), line["xaxis"]): line for line in chart["data"]}
        curve, points = lines["level 2", "x"], lines["level 2", "x2"]
        np.testing.assert_allclose(curve["x"], [0.05, 0.8])
        np.testing.assert_allclose(curve["y"], [0, 0.25])
        assert points["x"] == [factor * UNSURE[case] for case in points["text"]]
        assert curve["visible"] is True and lines["level 1", "x"]["visible"] == "legendonly"


def test_the_least_sure_comes_first(tmp_path):
    folder = unsure(evaluation(tmp_path / "run"), UNSURE | {"head_2": np.nan})
    page = written(tmp_path, folder)
    first = page.split("Look at these first")[1].split("</section>")[0]
    rows = re.findall(
        r'<tr data-view="(\d)" data-structure="(\d)">.*?</td>.*?</td><td data-value="(.*?)"', first
    )
    # Nothing was found in head_2; the third case's face is the least sure of all others.
    assert rows == [
        ("1", "1", ""),
        ("1", "2", ""),
        ("2", "2", "120.0"),
        ("0", "2", "60.0"),
        ("2", "1", "60.0"),
        ("0", "1", "30.0"),
    ]
    assert "uncertainty (%)<small>level 2</small>" in first


def test_evaluations_without_probabilities_say_nothing_of_that(tmp_path):
    bare = evaluation(tmp_path / "bare")
    assert 'id="uncertainty"' not in written(tmp_path, bare)
    # Beside one that has them it is left out of tables and charts.
    page = written(tmp_path, unsure(evaluation(tmp_path / "run")), bare)
    section = page.split('<section id="uncertainty">')[1].split("</section>")[0]
    assert "run: level 2" in section and "bare: level 2" not in section
    curves = [line for line in embedded(page, "figures")[0]["data"] if line["xaxis"] == "x"]
    assert [line.get("name") for line in curves][1:] == ["run: level 1", "run: level 2"]
    assert not calibration.read(bare)


def test_names_are_text(tmp_path):
    """No name becomes a tag, wherever it is: table, chart or view."""
    tags = {tag for tag, _ in Elements(written(tmp_path, evaluation(tmp_path / "<b>run"))).found}
    assert not tags & {"b"} and "</b>" not in written(tmp_path, tmp_path / "<b>run" / "evaluation")


def test_a_view(tmp_path):
    view = embedded(written(tmp_path, evaluation(tmp_path / "run")), "view-0")
    assert view["shape"] == view["size"] == list(SHAPE) and view["spacing"] == list(SPACING)
    assert [method["name"] for method in view["methods"]] == ["level 1", "level 2"]
    assert [method["shown"] for method in view["methods"]] == [False, True]
    assert (
        view["methods"][1]["colour"] == figures.PREDICTION
        and view["truth"]["colour"] == figures.TRUTH
    )
    head, face = view["methods"][1]["surfaces"]
    assert head["vertices"]["unit"] * 65535 == pytest.approx(26)  # mm: the head's 13 voxels of 2 mm
    assert head["distances"]["unit"] * 65535 == pytest.approx(1) and face["distances"] is not None
    assert 1 < view["farthest"] <= 2


def test_two_runs_lie_over_each_other(tmp_path):
    folders = [evaluation(tmp_path / name) for name in ("a", "b")]
    page = written(tmp_path, *folders)
    view = embedded(page, "view-1")
    assert [method["name"] for method in view["methods"]] == [
        "a: level 1",
        "a: level 2",
        "b: level 1",
        "b: level 2",
    ]
    assert [method["shown"] for method in view["methods"]] == [False, True, False, True]
    assert len({method["colour"] for method in view["methods"]}) == 4
    assert "b: level 2 against a: level 2, head: DSC +0.00 %" in page
    assert page.count("<tr data-view=") == 6


def test_an_evaluation_without_views_or_run(tmp_path):
    folder = evaluation(tmp_path / "run")
    shutil.rmtree(folder / "views")
    shutil.move(folder, tmp_path / "scores")
    page = written(tmp_path, tmp_path / "scores")
    assert (
        "<tr data-view=" not in page
        and 'href="#training"' not in page
        and "Evaluation of scores" in page
    )


def test_images(tmp_path):
    view = embedded(
        written(tmp_path, evaluation(tmp_path / "run", dimensions=2, probability=False)), "view-0"
    )
    assert view["shape"] == [1, 24, 28] and view["farthest"] is None
    assert all(
        method["surfaces"] == [] and method["probability"] is None for method in view["methods"]
    )


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda a, b: (b, b), "different names"),
        (lambda a, b: (a, evaluation(b.parent, cases=["head_1"], truth_at=7)), "another truth"),
        (lambda a, b: (a, evaluation(b.parent, shifts={"head_9": (1, 1)})), "no case in common"),
        (lambda a, b: (b.parent,), "scores.csv: no such file"),
        (
            lambda a, b: (a, b, (b.parent / "level_1" / "history.csv").write_text("epoch\n"))[:2],
            "history.csv",
        ),
        (lambda a, b: (a, b, (b.parent / "config.json").write_text("{"))[:2], "config.json"),
        (lambda a, b: (a, b, (b / "views" / "head_1.npz").write_text(""))[:2], "head_1.npz"),
        (
            lambda a, b: (a, b, (b / "scores.csv").write_text(",".join(tables.LONG) + "\n"))[:2],
            "holds no case",
        ),
        (
            lambda a, b: (a, tables.write(b, tables.read(b)[:2]) or b),
            "other methods than scores.csv",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(damage, told, tmp_path):
    folders = damage(*(evaluation(tmp_path / name, cases=["head_1"]) for name in ("a", "b")))
    with pytest.raises(errors.UserError, match=told):
        report_page.write(tmp_path / "report.html", folders)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def scored(folder, evaluation, change=lambda row: row, more=()):
    """Tables without views, as the score command writes them, of the last method's rows."""
    rows = [row for row in tables.read(evaluation) if row["method"] == "level 2"]
    tables.write(folder, [change(row | {"method": "results"}) for row in rows] + list(more))
    return folder


def test_scores_of_files_stand_beside_a_run(tmp_path):
    """A structure that the run does not know opens the view with all of its own."""
    run = evaluation(tmp_path / "run")
    other = tables.read(run)[0] | {"method": "results", "structure": "label 3"}
    page = written(tmp_path, run, scored(tmp_path / "scores", run, more=[other]))
    assert "scores: results against run: level 2, head: DSC +0.00 %" in page
    rows = re.findall(r'<tr data-view="0" data-structure="(.)">.*?data-value="([^"]*)">', page)
    assert sorted(number for number, _ in rows) == ["0", "1", "2"]


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda row: row | {"truth_volume_mL": 7.0}, "truth_volume_mL is 7, in .*same ground"),
        (
            lambda row: row | {"structure": f"of {row['structure']}"},
            "the structures are head, <b>face</b> and of head, of <b>face</b>; expected the same",
        ),
    ],
)
def test_other_truths_and_other_names_are_refused(change, told, tmp_path):
    run = evaluation(tmp_path / "run", cases=["head_1"])
    with pytest.raises(errors.UserError, match=told):
        report_page.write(tmp_path / "x.html", [run, scored(tmp_path / "scores", run, change)])


def test_the_script(tmp_path):
    def script(evaluations, output):
        command = [
            sys.executable,
            "eval/report.py",
            f"--evaluations={evaluations}",
            f"--output={tmp_path / output}",
        ]
        return subprocess.run(
            command,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )

    done = script(evaluation(tmp_path / "run"), "new/report.html")
    assert done.returncode == 0 and (tmp_path / "new" / "report.html").stat().st_size < 3e6, (
        done.stderr
    )
    done = script(tmp_path, "other.html")
    assert (
        done.returncode == 1
        and done.stderr.count("\n") == 1
        and "scores.csv: no such file" in done.stderr
    )
    assert not (tmp_path / "other.html").exists()


# In a browser


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; what it writes to its console is kept."""
    binary = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("needs Chromium and its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    # WebGL without a GPU, and without a sandbox, as in a container of root's.
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--enable-unsafe-swiftshader",
    ):
        options.add_argument(flag)
    options.add_argument("--window-size=1280,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()


class Page:
    """A report in a browser, as a user sees it."""

    def __init__(self, browser, path):
        self.browser = browser
        browser.get(pathlib.Path(path).as_uri())

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def until(self, condition):
        return WebDriverWait(self.browser, 30).until(lambda _: condition())

    def cases(self):
        return [(row.text.split()[0], row.text.split()[1]) for row in self.all("#cases tbody tr")]

    def picture(self):
        """The axial plane."""
        return self.browser.execute_script("return document.querySelector('canvas').toDataURL()")

    def pixels(self, colour, axis=0):
        """Heights in a plane, 0 (top) to 1, of all its pixels of the colour "#rrggbb"."""
        script = """
            const [wanted, canvas] = arguments, heights = [];
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            for (let i = 0; i < data.length; i += 4)
                if (wanted.every((value, channel) => Math.abs(data[i + channel] - value) < 12))
                    heights.push(i / data.length);
            return heights;"""
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return self.browser.execute_script(
            script, wanted, self.one(f'figure[data-axis="{axis}"] canvas')
        )

    def require_no_errors(self):
        assert [
            entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"
        ] == []
        script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        assert [
            name for name in self.browser.execute_script(script) if name.startswith("http")
        ] == []


def test_two_runs_in_a_browser(browser, tmp_path):
    written(
        tmp_path,
        evaluation(tmp_path / "a"),
        evaluation(tmp_path / "b", {"head_1": (0, 0), "head_2": (1, 3)}),
    )
    page = Page(browser, tmp_path / "report.html")

    # The table is sorted, worst first; a click on a heading sorts by it, another turns it around.
    assert page.cases()[:2] == [("head_2", "<b>face</b>"), ("head_2", "head")]
    page.one("#cases th").click()
    assert [case for case, _ in page.cases()] == ["<i>&3"] * 2 + ["head_1"] * 2 + ["head_2"] * 2
    page.one("#cases th").click()
    assert (
        page.cases()[0][0] == "head_2"
        and page.one("#cases th").get_attribute("aria-sort") == "descending"
    )

    # A case opens on the structure of its row, with the truth and the last method of each run.
    page.one('tr[data-view="0"][data-structure="1"] button').click()
    page.until(lambda: page.one("#viewer h2").text == "head_1")
    assert [box.is_selected() for box in page.all("#layers input")] == [
        True,
        False,
        True,
        False,
        True,
    ]
    before = page.picture()
    assert all(
        len(page.pixels(colour)) > 200 for colour in (figures.TRUTH, *report_page.COLOURS[:2])
    )
    assert not page.pixels(report_page.COLOURS[2])
    for colour in (
        figures.TRUTH,
        "#ffffff",
    ):  # the head is bright: from slice 5 to 13 of 20, counted from below
        assert np.mean(page.pixels(colour, axis=1)) == pytest.approx(1 - 9 / 20, abs=0.02)
    page.all("#layers input")[0].click()
    assert not page.pixels(figures.TRUTH)
    page.all("#layers input")[0].click()
    assert page.picture() == before

    # The slider moves its plane, by keys too; a click moves the others; outside the head is no
    # outline.
    slider, text = page.one('figure[data-axis="0"] input'), page.one('figure[data-axis="0"] span')
    assert text.text == "z = 9 of 20"
    slider.send_keys(Keys.ARROW_RIGHT * 2)
    assert text.text == "z = 11 of 20" and page.picture() != before
    slider.send_keys(Keys.END)
    assert text.text == "z = 19 of 20" and not page.pixels(figures.TRUTH)
    coronal = page.one('figure[data-axis="1"] canvas')
    ActionChains(browser).move_to_element_with_offset(
        coronal, 0, 25
    ).click().perform()  # below the middle
    assert text.text == "z = 8 of 20" and len(page.pixels(figures.TRUTH)) > 200
    assert page.one("#voxel").text.startswith("voxel (z, y, x): 8, 10, 14\ntruth: background")

    # Probability, another structure, the surface
    white = len(page.pixels("#ffffff"))
    page.all("#probability option")[-1].click()
    assert len(page.pixels("#ffffff")) < white
    page.all("#structure option")[0].click()
    page.until(lambda: page.all("#surface canvas"))
    meshes = (
        "return document.querySelector('#surface').data.map((mesh) => Math.max(...mesh.intensity))"
    )
    page.until(lambda: len(browser.execute_script(meshes)) == 2)
    assert browser.execute_script(meshes) == [0, 0]  # the last method of b is right
    extent = (
        "const { x, y, z } = document.querySelector('#surface').data[0]; "
        "return [x, y, z].map((a) => [...a])"
    )
    x, y, z = browser.execute_script(
        extent
    )  # of the head: voxels 6 to 13 along x and y, 5 to 12 of 2 mm along z
    assert [f(v) for v in (x, y, z) for f in (min, max)] == pytest.approx(
        [6, 14, 6, 14, 10, 26], abs=1e-3
    )
    page.all("#coloured option")[1].click()
    page.until(
        lambda: browser.execute_script(meshes) == pytest.approx([1, 1], abs=1e-3)
    )  # that of a is 1 mm off

    # The next row, and back to the page with its charts
    page.one("#after").click()
    page.until(
        lambda: (
            page.one("#viewer h2").text != "head_1"
            or page.one("#structure select").get_property("value") == "2"
        )
    )
    page.one("#close").click()
    assert not page.one("#viewer").is_displayed()
    for chart in page.all(".chart"):
        browser.execute_script("arguments[0].scrollIntoView()", chart)
        page.until(functools.partial(chart.find_elements, By.CSS_SELECTOR, ".main-svg"))
    page.require_no_errors()


def test_images_in_a_browser(browser, tmp_path):
    written(tmp_path, evaluation(tmp_path / "run", dimensions=2, probability=False))
    page = Page(browser, tmp_path / "report.html")
    page.one("tr[data-view] button").click()
    page.until(lambda: page.one("#viewer h2").text == "<i>&3")
    assert all(len(page.pixels(colour)) > 200 for colour in (figures.TRUTH, figures.PREDICTION))
    shown = [figure.is_displayed() for figure in page.all("#viewer figure")]
    assert shown == [True, False, False, False] and not page.one("#probability").is_displayed()
    page.require_no_errors()
