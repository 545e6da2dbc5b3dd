"""Growth charts: their curves, z-scores by hand, changes between visits, and what is refused."""

import csv
import itertools
import json
import math
import sys

import numpy as np
import pytest
import running
from matplotlib import image as png
from test_report_page import Elements, embedded

from tf_autoctx import growth
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.growth import Chart, Polynomial
from tf_autoctx.report import tables

SIZES = {"DSC_percent": 90.0, "volume_error_percent": 1.0}
# Of HC: mean 60 + 60 x, SD 5 x with x = weeks / 10, from 20 to 30 weeks; at 20 weeks 180 and 10 mm.
HC = Chart(
    Polynomial((1.0,), (60.0, 60.0)), Polynomial((1.0,), (0.0, 5.0)), False, (20.0, 30.0), 99
)
# Of volume: ln y has the mean ln 100 and the SD ln 2 at every age.
VOLUME = Chart(
    Polynomial((), (math.log(100),)), Polynomial((), (math.log(2),)), True, (20.0, 30.0), 99
)


def write(path, header, *lines):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def chart_file(path, charts=None, structure="head", truth=False, subjects=("known",)):
    charts = charts or {"HC_mm": HC, "volume_mL": VOLUME}
    marks = frozenset(map(growth.mark, subjects))
    growth.write(path, growth.Reference(charts, structure, truth, marks))
    return path


def evaluation(folder, heads, methods=("level 1",), structures=("head",), groups=None):
    """An evaluation of heads {case: HC in mm}, whose truth is 10 mm larger; volumes are 100 mL, of
    an earlier method half of it."""
    rows = []
    for (number, method), structure in itertools.product(enumerate(methods, 1), structures):
        for case, hc in heads.items():
            about = {"system": "", "method": method, "case": case, "structure": structure}
            about["group"] = (groups or {}).get(case, "")
            own = {"volume_mL": 100.0 * number / len(methods), "truth_volume_mL": 200.0}
            rows.append(about | SIZES | own | {"HC_mm": hc, "truth_HC_mm": hc + 10})
    tables.write(folder, rows)
    return folder


def normal_subjects(count=200, seed=0):
    """(ages from 15 to 40 weeks, values): mean -60 + 12 weeks, SD 2 + 0.4 (weeks - 15)."""
    rng = np.random.default_rng(seed)
    ages = rng.uniform(15, 40, count)
    return ages, -60 + 12 * ages + (2 + 0.4 * (ages - 15)) * rng.normal(size=count)


def skewed_subjects(count=400):
    """(ages from 15 to 40 weeks, values), whose logarithm has the mean 4 + 0.02 weeks, SD 0.3."""
    rng = np.random.default_rng(0)
    ages = rng.uniform(15, 40, count)
    return ages, np.exp(4 + 0.02 * ages + 0.3 * rng.normal(size=count))


def reference_files(folder, count=60, name="HC_mm", visits=1):
    """A CSV file of cases and one of their ages, `visits` of each subject a week apart."""
    ages, values = normal_subjects(count * visits)
    cases = [f"r{k}_{v}" for k in range(count) for v in range(visits)]
    lines = zip(cases, ages, values)
    table = write(folder / "normal.csv", f"case,{name}", *(f"{c},{y}" for c, _, y in lines))
    told = (f"{case},{age},{case.split('_')[0]}" for case, age in zip(cases, ages))
    return table, write(folder / "normal_ages.csv", "case,age_weeks,subject", *told)


# Curves


@pytest.mark.parametrize(
    "powers, coefficients, expected, shown",
    [
        ((), (7.0,), 7, "7"),
        ((1.0,), (1.0, -10.0), 1 - 10 * 2, "1 - 10 x"),
        ((2.0, 3.0), (1.0, 10.0, 100.0), 1 + 10 * 4 + 100 * 8, "1 + 10 x^2 + 100 x^3"),
        ((-1.0, 0.5), (0.0, 4.0, 1.0), 4 / 2 + math.sqrt(2), "0 + 4 x^-1 + 1 x^0.5"),
        ((0.0,), (0.0, 3.0), 3 * math.log(2), "0 + 3 ln x"),
        ((0.0, 0.0), (0.0, 0.0, 3.0), 3 * math.log(2) ** 2, "0 + 0 ln x + 3 ln x ln x"),
        ((3.0, 3.0), (0.0, 1.0, -1.0), 8 - 8 * math.log(2), "0 + 1 x^3 - 1 x^3 ln x"),
    ],
)
def test_a_fractional_polynomial_at_20_weeks(powers, coefficients, expected, shown):
    """x is 2 there."""
    curve = Polynomial(powers, coefficients)
    assert curve(20.0) == pytest.approx(expected) and str(curve) == shown
    np.testing.assert_allclose(curve([[20.0], [20.0]]), [[expected], [expected]])


@pytest.mark.parametrize("degree", [1, 2])
def test_the_best_polynomial_has_the_least_squares_of_all(degree):
    """Where the curve is bent enough, no other powers come closer: by numpy, one by one."""
    age = np.linspace(12, 40, 80)
    values = 5 * np.sin(age / 9) + np.random.default_rng(1).normal(0, 0.1, 80)
    found = growth.polynomial(age, values, degree)

    def squares(powers):
        x, columns = age / 10, [np.ones(80)]
        for k, power in enumerate(powers):
            column = x**power if power else np.log(x)
            columns.append(column * np.log(x) if power in powers[:k] else column)
        return np.linalg.lstsq(np.stack(columns, 1), values, rcond=None)[1][0]

    every = itertools.combinations_with_replacement((-2, -1, -0.5, 0, 0.5, 1, 2, 3), degree)
    assert found.powers == min(every, key=squares)
    assert np.square(values - found(age)).sum() == pytest.approx(squares(found.powers))


def test_a_curve_is_no_more_bent_than_the_values_ask_for():
    """Of 60 straight lines with noise about 5 % seem to be bent, of 60 constants to change: by
    noise alone, see SIGNIFICANT."""
    age = np.linspace(15, 40, 60)
    for slope, powers in ((1.0, (1.0,)), (0.0, ())):
        more = 0
        for seed in range(60):
            noise = np.random.default_rng(100 + seed).normal(0, 1, 60)
            more += growth.polynomial(age, 3 + slope * age + noise, 2).powers != powers
        assert more <= 6, powers


def test_the_curves_of_made_up_subjects_come_back():
    """Mean -60 + 12 weeks, SD 2 + 0.4 (weeks - 15): -60 + 120 x and -4 + 4 x."""
    ages, values = normal_subjects(4000)
    chart = growth.fit(ages, values, False, "made up")
    assert chart.mean.powers == chart.sd.powers == (1.0,) and chart.subjects == 4000
    assert chart.mean.coefficients == pytest.approx((-60, 120), abs=0.6)
    assert chart.sd.coefficients == pytest.approx((-4, 4), abs=0.3)
    assert chart.ages == (ages.min(), ages.max())
    z = chart.z(ages, values)
    assert (z.mean(), z.std()) == pytest.approx((0, 1), abs=0.03)
    assert chart.shapiro_p > 0.05 and chart.shapiro_w > 0.999
    assert (chart.below_10, chart.above_90) == pytest.approx((10, 10), abs=1)
    assert chart.below_10 == 100 * np.mean(z < -1.2815515655) != chart.above_90
    assert chart.centile(30.0, 97) == pytest.approx(300 + 1.8808 * 8, abs=0.6)


def test_the_sd_is_the_mean_absolute_residual_of_a_normal_distribution():
    """Half of the values is 1 above, half 1 below 100: the SD is sqrt(pi / 2), not 1."""
    ages = np.repeat([20, 22, 24, 26, 28], 8)
    chart = growth.fit(ages, 100 + np.tile([1.0, -1.0], 20), False, "two values")
    assert chart.mean.powers == chart.sd.powers == ()
    assert chart.sd.coefficients == pytest.approx((math.sqrt(math.pi / 2),))
    np.testing.assert_allclose(chart.z([20, 28], [101, 99]), [0.79788, -0.79788], atol=1e-5)
    assert chart.shapiro_p < 1e-4


def test_subjects_of_a_wide_spread_count_less_for_the_mean():
    """The SD grows from 2 to 12 mm: residuals cancel out by 1 / SD^2, and not by their number."""
    ages, values = normal_subjects(300, seed=4)
    chart = growth.fit(ages, values, False, "made up")
    plain = np.polyval(np.polyfit(ages, values, 1), ages)
    weights = chart.sd(ages) ** -2.0
    assert chart.mean.powers == (1.0,)
    assert abs(np.average(values - chart.mean(ages), weights=weights)) < 0.02
    assert abs(np.average(values - plain, weights=weights)) > 0.3


def test_the_logarithm_of_what_is_skewed_is_normal():
    ages, values = skewed_subjects(2000)
    plain, logs = (growth.fit(ages, values, log, "made up") for log in (False, True))
    assert plain.shapiro_w < 0.96 and logs.shapiro_w > 0.995
    assert logs.centile(30.0, 50) == pytest.approx(math.exp(4.6), rel=0.02)
    assert logs.centile(30.0, 90) == pytest.approx(math.exp(4.6 + 1.28155 * 0.3), rel=0.03)


def test_z_scores_and_centiles_by_hand():
    assert HC.z([20.0, 30.0], [200.0, 225.0]) == pytest.approx([2.0, -1.0])
    assert HC.centile(20.0, 50) == pytest.approx(180)
    assert HC.centile(20.0, 97) == pytest.approx(180 + 10 * 1.880794)
    assert VOLUME.z(25.0, [50, 100, 400]) == pytest.approx([-1, 0, 2])
    assert VOLUME.centile(25.0, 90) == pytest.approx(100 * 2**1.281552)
    outside = HC.z([19.99, 20.0, 30.0, 30.01], [180.0] * 4)
    assert np.isnan(outside).tolist() == [True, False, False, True]
    assert np.isnan(HC.centile([19.0, 31.0], 50)).all()


@pytest.mark.parametrize(
    "ages, values, log, told",
    [
        (
            np.arange(20, 49),
            5.0 + np.arange(29),
            False,
            "a: 29 subjects of 29 ages; expected at least 30",
        ),
        (np.repeat([20, 21], 20), 5.0 + np.arange(40), False, "40 subjects of 2 ages; expected"),
        (np.arange(20, 60), np.full(40, 7.0), False, "SD at 20 weeks is .*; expected more than 0"),
        (np.arange(20, 60), np.full(40, 7.0), True, "more subjects there, or another measurement"),
    ],
)
def test_subjects_that_make_no_chart(ages, values, log, told):
    with pytest.raises(UserError, match=told):
        growth.fit(ages, values, log, "a")


def test_an_sd_that_falls_to_0_asks_for_the_logarithm():
    ages = np.linspace(10, 40, 120)
    values = 500 + np.tile([1.0, -1.0], 60) * np.maximum(0, ages - 14) ** 1.5
    with pytest.raises(
        UserError, match=r"SD at 10 weeks is -.* subjects there, or its logarithm, see `log`"
    ):
        growth.fit(ages, values, False, "a")


def test_charts_come_back_from_their_file(tmp_path):
    reference = growth.read(chart_file(tmp_path / "c.json", truth=True, subjects=("a", "b")))
    assert reference.charts["HC_mm"].mean == HC.mean and reference.charts["volume_mL"].log
    assert (reference.structure, reference.truth) == ("head", True)
    assert reference.holds("a") and not reference.holds("c")
    assert '"a"' not in (tmp_path / "c.json").read_text()  # no name of a subject is told


@pytest.mark.parametrize(
    "change, told",
    [
        ({"charts": {"HC_mm": {}}}, "lacks 'mean'; expected a growth chart of tf_autoctx, as cha"),
        ({"kind": "other"}, "holds something else; expected a growth chart"),
        ({"charts": []}, "holds something else"),
        ({"marks": None}, "holds something else"),
        ({"powers": [1.5]}, "holds something else"),
        ({"ages": [30, 20]}, "holds something else"),
        ({"ages": [-20, 20]}, "holds something else"),
        ({"sd": [0, -5.0]}, "holds something else"),
        ({"sd": [5.0]}, "holds something else"),
    ],
)
def test_a_file_that_is_no_chart(tmp_path, change, told):
    path = chart_file(tmp_path / "c.json", {"HC_mm": HC})
    content = json.loads(path.read_text())
    chart = content["charts"]["HC_mm"]
    chart["mean"]["powers"] = change.pop("powers", [1.0])
    chart["sd"]["coefficients"] = change.pop("sd", [0.0, 5.0])
    chart["ages"] = change.pop("ages", [20, 30])
    path.write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=f"c.json: {told}"):
        growth.read(path)


# The command


def test_new_cases_on_an_earlier_chart(tmp_path, capsys):
    """HC: mean 180, SD 10 mm at 20 weeks, 240 and 15 mm at 30. Volume: 100 mL, SD: twice that."""
    chart = chart_file(tmp_path / "chart.json")
    heads = {"a1": 200.0, "a2": 225.0, "b": math.nan, "c": 300.0, "d": 170.0}
    cases = evaluation(tmp_path / "new", heads)
    ages = ("a2,30,anna", "a1,20,anna", "b,25,", "c,31,", "d,20,known", "elsewhere,20,")
    ages = write(tmp_path / "ages.csv", "case,age_weeks,subject", *ages)
    output = tmp_path / "out"
    running.call(
        "growth",
        f"--evaluation={cases}",
        f"--ages={ages}",
        f"--reference={chart}",
        f"--output={output}",
    )
    lines = {(line["case"], line["measurement"]): line for line in read(output / "z_scores.csv")}
    assert len(lines) == 2 * 5
    hc = {case: lines[case, "HC_mm"] for case in heads}
    assert [float(hc[case]["z"]) for case in ("a1", "a2", "d")] == pytest.approx([2, -1, -1])
    assert float(hc["a1"]["centile"]) == pytest.approx(97.725, abs=1e-3)
    assert (hc["b"]["z"], hc["b"]["note"]) == ("nan", "not measured")
    assert (hc["c"]["z"], hc["c"]["note"]) == ("nan", "outside of the chart's 20 to 30 weeks")
    assert [hc[case]["subject_in_chart"] for case in ("a1", "d")] == ["no", "yes"]
    assert [hc[case]["subject"] for case in ("a1", "b")] == ["anna", "b"]
    assert float(lines["a1", "volume_mL"]["z"]) == pytest.approx(0)
    change = {line["measurement"]: line for line in read(output / "changes.csv")}["HC_mm"]
    assert (change["subject"], change["case_before"], change["case_after"]) == ("anna", "a1", "a2")
    names = ("weeks_before", "weeks_after", "change", "change_per_week", "z_change")
    assert [float(change[name]) for name in names] == pytest.approx([20, 30, 25, 2.5, -3])
    assert len(read(output / "changes.csv")) == 2  # of one subject, two measurements
    centiles = [line for line in read(output / "centiles.csv") if line["measurement"] == "HC_mm"]
    assert [float(line["age_weeks"]) for line in centiles] == [*range(20, 31)]
    assert float(centiles[0]["centile_50"]) == pytest.approx(180)
    assert float(centiles[0]["centile_3"]) == pytest.approx(180 - 18.80794)
    told = capsys.readouterr().out
    assert "1 of 4 subjects are in the charts themselves" in told
    assert "HC_mm below the 3rd or above the 97th centile (z): a1 (+2.00)" in told
    assert "HC_mm outside of the chart's 20 to 30 weeks: c" in told
    assert "HC_mm not measured: b" in told
    assert growth.read(output / "chart.json") == growth.read(chart)
    assert png.imread(output / "charts" / "HC_mm.png").shape[:2] == (550, 800)


def test_the_page_of_new_cases(tmp_path):
    chart = chart_file(tmp_path / "chart.json", {"HC_mm": HC})
    cases = write(tmp_path / "new.csv", "case,HC_mm", "<i>a,200", "b,190", "c,225")
    ages = ("<i>a,20,<b>x", "b,25,y", "c,30,<b>x")
    ages = write(tmp_path / "ages.csv", "case,age_weeks,subject", *ages)
    words = (f"--evaluation={cases}", f"--ages={ages}", f"--reference={chart}")
    running.call("growth", *words, f"--output={tmp_path / 'out'}")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert not {tag for tag, _ in Elements(page).found} & {"b", "i"} - {"i"}
    assert "&lt;i&gt;a" in page and "<b>x" not in page
    (figure,) = embedded(page, "figures")
    curves = {line["name"]: line for line in figure["data"]}
    assert curves["centile 50"]["y"][0] == pytest.approx(180)
    assert curves["centile 90"]["y"][-1] == pytest.approx(240 + 15 * 1.28155, abs=1e-3)
    visits = curves["visits"]
    assert visits["x"] == [20, 30, None, 25, None]  # a line a subject
    assert visits["y"] == [200, 225, None, 190, None]
    assert [name for name in visits["text"] if "x" in name] == ["<b>x"] * 3
    table = page.split('<section id="z-scores">')[1].split("</section>")[0]
    assert table.index(">b<") < table.index("&lt;i&gt;a")  # first the lowest z-score
    for heading in ("charts", "fit", "z-scores", "changes"):
        assert f'<section id="{heading}">' in page


def test_a_chart_of_the_cases_themselves(tmp_path, capsys):
    """200 subjects make a chart, and are told to be in it."""
    table, ages = reference_files(tmp_path, 200)
    output = tmp_path / "out"
    running.call("growth", f"--evaluation={table}", f"--ages={ages}", f"--output={output}")
    lines = read(output / "z_scores.csv")
    z = np.array([float(line["z"]) for line in lines])
    assert len(z) == 200 and (z.mean(), z.std()) == pytest.approx((0, 1), abs=0.1)
    assert {line["subject_in_chart"] for line in lines} == {"yes"}
    assert not read(output / "changes.csv")
    told = capsys.readouterr().out
    assert f"charts: 200 subjects of {table}\n" in told
    assert "200 of 200 subjects are in the charts themselves" in told
    chart = growth.read(output / "chart.json").charts["HC_mm"]
    assert chart.subjects == 200 and chart.centile(30.0, 50) == pytest.approx(300, abs=2)
    assert "cases:" not in told


def test_one_visit_of_each_subject_makes_the_chart(tmp_path, capsys):
    table, ages = reference_files(tmp_path, 40, visits=3)
    output = tmp_path / "out"
    words = (f"--evaluation={table}", f"--ages={ages}", f"--output={output}")
    running.call("growth", *words)
    assert "40 of them have several visits, of which one is drawn" in capsys.readouterr().out
    chart = growth.read(output / "chart.json").charts["HC_mm"]
    assert chart.subjects == 40
    visits = {line["case"]: float(line["age_weeks"]) for line in read(output / "z_scores.csv")}
    of = [sorted(visits[f"r{k}_{v}"] for v in range(3)) for k in range(40)]
    drawn = [ages[int(growth.mark(f"r{k}"), 16) % 3] for k, ages in enumerate(of)]
    assert chart.ages == (min(drawn), max(drawn)) and len(set(map(len, of))) == 1
    # First visits, middle ones and last ones are among them.
    assert len({ages.index(age) for ages, age in zip(of, drawn)}) == 3
    assert len(read(output / "changes.csv")) == 80
    first = (output / "chart.json").read_bytes()
    running.call("growth", *words)
    assert (output / "chart.json").read_bytes() == first


def test_a_reference_of_its_own_with_ages_of_its_own(tmp_path, capsys):
    table, ages = reference_files(tmp_path)
    new = write(tmp_path / "new.csv", "case;HC_mm", "r0_0;330", "n2;300")
    new_ages = write(tmp_path / "ages.csv", "case;age_weeks;subject", "r0_0;30;r0;", "n2;30;n2;")
    words = (f"--evaluation={new}", f"--ages={new_ages}", f"--output={tmp_path / 'out'}")
    words_of_both = (*words, f"--reference={table}", f"--reference_ages={ages}")
    # A structure and a method that the reference does not name are no others.
    named = evaluation(
        tmp_path / "named", {"r0_0": 330.0, "n2": 300.0}, structures=("head", "face")
    )
    further = (
        f"--evaluation={named}",
        "--structure=head",
        "--method=level 1",
        "--measurements=HC_mm",
    )
    running.call("growth", *words_of_both, *further)
    before = read(tmp_path / "out" / "z_scores.csv")
    capsys.readouterr()
    running.call("growth", *words_of_both)
    lines = read(tmp_path / "out" / "z_scores.csv")
    assert [line["case"] for line in lines] == ["r0_0", "n2"]
    assert [line["z"] for line in lines] == [line["z"] for line in before]
    assert float(lines[0]["z"]) == pytest.approx(30 / 8, abs=1) and abs(float(lines[1]["z"])) < 0.5
    assert [line["subject_in_chart"] for line in lines] == ["yes", "no"]
    told = capsys.readouterr().out
    assert f"charts: 60 subjects of {table}\n" in told and f"cases: 2 of {new}\n" in told
    # Both may be in one file.
    both = write(tmp_path / "both.csv", *ages.read_text().splitlines(), "n2,30,n2")
    running.call("growth", *words, f"--ages={both}", f"--reference={table}")
    assert "without an age, left out" not in capsys.readouterr().out
    (figure,) = embedded((tmp_path / "out" / "report.html").read_text("utf-8"), "figures")
    dots = next(line for line in figure["data"] if line["name"] == "of the chart")
    assert len([x for x in dots["x"] if x is not None]) == 60


def test_the_logarithm_is_wanted_by_name(tmp_path, capsys):
    ages, values = skewed_subjects()
    names = [f"c{k}" for k in range(len(ages))]
    rows = (f"{name},{y},{y}" for name, y in zip(names, values))
    table = write(tmp_path / "cases.csv", "case,volume_mL,HC_mm", *rows)
    rows = (f"{name},{age}" for name, age in zip(names, ages))
    told = write(tmp_path / "ages.csv", "case,age_weeks", *rows)
    words = (f"--evaluation={table}", f"--ages={told}", f"--output={tmp_path / 'out'}")
    running.call("growth", *words, "--log=volume_mL")
    charts = growth.read(tmp_path / "out" / "chart.json").charts
    assert charts["volume_mL"].log and not charts["HC_mm"].log
    out = capsys.readouterr().out
    assert "HC_mm: the z-scores of the charts' own subjects are not normal; try --log=HC_mm" in out
    assert "ln y = " in out and "volume_mL: the z-scores" not in out
    running.call("growth", *words, "--measurements=HC_mm")
    assert [*growth.read(tmp_path / "out" / "chart.json").charts] == ["HC_mm"]
    assert [path.name for path in (tmp_path / "out" / "charts").iterdir()] == ["HC_mm.png"]


def values_of(tmp_path, *words):
    """{measurement: values of the cases} as the command took them."""
    running.call("growth", f"--output={tmp_path / 'out'}", *words)
    found = {}
    for line in read(tmp_path / "out" / "z_scores.csv"):
        found.setdefault(line["measurement"], []).append(float(line["value"]))
    return found


def test_which_rows_and_columns_of_an_evaluation_are_taken(tmp_path, capsys):
    chart = chart_file(tmp_path / "chart.json")
    both = {"methods": ("level 1", "level 2"), "structures": ("head", "face")}
    cases = evaluation(tmp_path / "new", {"a": 180.0}, **both)
    ages = write(tmp_path / "ages.csv", "case,age_weeks", "a,20")
    words = (f"--evaluation={cases}", f"--ages={ages}", f"--reference={chart}", "--structure=head")
    assert values_of(tmp_path, *words) == {"HC_mm": [180], "volume_mL": [100]}
    assert f"cases: 1 of {cases / 'cases.csv'} (head, level 2)" in capsys.readouterr().out
    assert values_of(tmp_path, *words, "--method=level 1")["volume_mL"] == [50]
    capsys.readouterr()
    assert values_of(tmp_path, *words, "--truth") == {"HC_mm": [190], "volume_mL": [200]}
    assert "the charts are of predictions, the cases of true labels" in capsys.readouterr().out
    assert [*values_of(tmp_path, *words, "--measurements=HC_mm")] == ["HC_mm"]
    chart_file(chart, truth=True)
    values_of(tmp_path, *words)
    assert "the charts are of true labels, the cases of predictions" in capsys.readouterr().out


def test_measurements_of_predictions(tmp_path):
    """What autoctx-predict --measurements writes; an area that is missing is none."""
    lines = ("day_1/a,head,,180", "day_1/b,head,nan,190")
    folder = tmp_path / "results"
    folder.mkdir()
    write(folder / "measurements.csv", "image,structure,area_mm2,HC_mm", *lines)
    ages = write(tmp_path / "ages.csv", "case,age_weeks", "day_1/a,20", "day_1/b,20")
    chart = chart_file(tmp_path / "chart.json", {"HC_mm": HC})
    words = (f"--evaluation={folder}", f"--ages={ages}", f"--reference={chart}")
    assert values_of(tmp_path, *words) == {"HC_mm": [180, 190]}


def test_the_group_of_an_evaluation_is_a_subject(tmp_path):
    groups = {"a": "anna", "b": "anna", "c": ""}
    cases = evaluation(tmp_path / "new", {"a": 180.0, "b": 200.0, "c": 190.0}, groups=groups)
    ages = write(tmp_path / "ages.csv", "case,age_weeks", "a,20", "b,22", "c,20")
    chart = chart_file(tmp_path / "chart.json", {"HC_mm": HC})
    values_of(tmp_path, f"--evaluation={cases}", f"--ages={ages}", f"--reference={chart}")
    (change,) = read(tmp_path / "out" / "changes.csv")
    assert (change["subject"], float(change["change_per_week"])) == ("anna", 10)


def test_cases_without_an_age_are_left_out_and_told(tmp_path, capsys):
    cases = evaluation(tmp_path / "new", {"a": 180.0, "b": 190.0})
    ages = write(tmp_path / "ages.csv", "case,age_weeks", "b,20")
    chart = chart_file(tmp_path / "chart.json", {"HC_mm": HC})
    words = (f"--evaluation={cases}", f"--ages={ages}", f"--reference={chart}")
    assert values_of(tmp_path, *words) == {"HC_mm": [190]}
    told = f"without an age, left out, of {cases / 'cases.csv'}: a\n"
    assert told in capsys.readouterr().out


@pytest.fixture
def bad(tmp_path):
    """Files that make a good call: the tests change one of them, or a flag."""
    chart_file(tmp_path / "chart.json")
    write(tmp_path / "new.csv", "case,HC_mm", "a,180", "b,190")
    write(tmp_path / "ages.csv", "case,age_weeks,subject", "a,20,s", "b,21,s")
    evaluation(tmp_path / "two", {"a": 180.0}, structures=("head", "face"))
    evaluation(tmp_path / "face", {"a": 180.0}, structures=("face",))
    return tmp_path


@pytest.mark.parametrize(
    "files, words, told",
    [
        ({}, ["--evaluation=nowhere.csv"], "nowhere.csv: no such file; expected a CSV file with"),
        ({}, ["--ages=nowhere.csv"], "nowhere.csv: no such file; expected a CSV file with the"),
        ({}, ["--reference=nowhere.json"], "nowhere.json: no such file; expected a growth chart"),
        ({"c.json": "{"}, ["--reference=c.json"], "c.json: is not JSON"),
        ({}, ["--evaluation=."], ".: holds no cases.csv and no measurements.csv; expected an"),
        ({"new.csv": "case,volume_pixel\na,3"}, [], "new.csv: has the columns case,volume_pixel;"),
        ({"new.csv": "name,HC_mm\na,3"}, [], "new.csv: has the columns name,hc_mm; expected case"),
        ({"new.csv": "case,HC_mm\n"}, [], "new.csv: holds no case; expected a line for each"),
        ({"new.csv": "case,HC_mm\na,large"}, [], "line 2: HC_mm is 'large'; expected a number"),
        ({"new.csv": "case,HC_mm\na,1\na,2"}, [], "line 3: has a a second time; expected each"),
        ({"ages.csv": "case,age\na,20"}, [], "ages.csv: has the columns case,age; expected a CSV"),
        ({"ages.csv": "case,age_weeks\na,24+2"}, [], "line 2: age_weeks is '24+2'; expected a num"),
        ({"ages.csv": "case,age_weeks\na,"}, [], "line 2: age_weeks is ''; expected weeks above 0"),
        ({"ages.csv": "case,age_weeks\na,-1"}, [], "line 2: age_weeks is '-1'; expected weeks abo"),
        ({"ages.csv": "case,age_weeks\na,2\na,3"}, [], "line 3: has a a second time; expected"),
        (
            {"ages.csv": "case,age_weeks\nz,20"},
            [],
            "ages.csv: names none of the 2 cases of new.csv,",
        ),
        (
            {"ages.csv": "case,age_weeks,subject\na,20,s\nb,20,s"},
            [],
            "ages.csv: a and b are of the subject s at one age, 20 weeks; expected one case a",
        ),
        ({}, ["--evaluation=two"], "--structure=: two/cases.csv has head, face; expected one of"),
        ({}, ["--evaluation=two", "--structure=foot"], "--structure=foot: two/cases.csv has head"),
        ({}, ["--evaluation=face"], "chart.json: is of head, face/cases.csv of face; expected one"),
        ({}, ["--method=level 9"], "--method=level 9: new.csv has no column method; leave it out"),
        ({}, ["--structure=head"], "--structure=head: new.csv has no column structure; leave it"),
        ({}, ["--evaluation=face", "--method=x"], "--method=x: face/cases.csv has level 1; expec"),
        ({}, ["--truth"], "new.csv: has the columns case,hc_mm; expected case (or image) and, in"),
        ({}, ["--measurements=BPD_mm"], "--measurements=BPD_mm: new.csv has HC_mm, not BPD_mm."),
        (
            {"new.csv": "case,BPD_mm,HC_mm\na,50,180"},
            ["--measurements=BPD_mm"],
            "--measurements=BPD_mm: chart.json has HC_mm, volume_mL, not BPD_mm.",
        ),
        (
            {"new.csv": "case,BPD_mm\na,50"},
            [],
            "new.csv: has BPD_mm, chart.json HC_mm, volume_mL; expected a measurement of both",
        ),
        ({}, ["--log=HC_mm"], "--log=HC_mm: the charts of chart.json are fitted already; leave it"),
        ({}, ["--reference_ages=ages.csv"], "--reference_ages=ages.csv: the charts of chart.json"),
        ({}, ["--reference=new.csv"], "new.csv, HC_mm: 1 subjects of 1 ages; expected at least 30"),
        (
            {},
            ["--reference=new.csv", "--log=BPD_mm"],
            "--log=BPD_mm: new.csv has HC_mm, not BPD_mm",
        ),
    ],
)
def test_bad_input_is_one_sentence(bad, monkeypatch, capsys, files, words, told):
    monkeypatch.chdir(bad)
    for name, text in files.items():
        (bad / name).write_text(text)
    good = ["--evaluation=new.csv", "--ages=ages.csv", "--reference=chart.json", "--output=out"]
    with pytest.raises(SystemExit, match="1"):
        running.call("growth", *good, *words)
    assert f"error: {told}" in capsys.readouterr().err.replace("new.csv, line", "line").replace(
        "ages.csv, line", "line"
    )
    assert not (bad / "out").exists()


def test_the_cases_of_the_bad_calls_are_good(bad, monkeypatch):
    monkeypatch.chdir(bad)
    words = ("--evaluation=new.csv", "--ages=ages.csv", "--reference=chart.json")
    assert values_of(bad, *words) == {"HC_mm": [180, 190]}


def test_ages_of_a_reference_that_there_is_not(bad, monkeypatch):
    from tf_autoctx.commands.growth import Growth

    with pytest.raises(FieldError, match="expected `reference` with it"):
        Growth(evaluation="e", ages="a", output="o", reference_ages="b")


def test_what_fits_may_be_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.regression.linear_model", None)
    table, ages = reference_files(tmp_path)
    words = (f"--evaluation={table}", f"--ages={ages}", f"--output={tmp_path / 'out'}")
    with pytest.raises(SystemExit, match="1"):
        running.call("growth", *words)
    told = capsys.readouterr().err
    assert told == (
        "error: statsmodels, by which growth charts are fitted, is not installed; run pip install "
        "'tf_autoctx[growth]'.\n"
    )
    assert not (tmp_path / "out").exists()
    # A chart that is there needs it no more.
    chart = chart_file(tmp_path / "chart.json", {"HC_mm": HC})
    running.call("growth", *words, f"--reference={chart}")
