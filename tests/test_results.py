"""Tables of results: what is declared, what becomes of scores, and that pages hold nothing else."""

import dataclasses
import importlib
import json
import pathlib
import re
import subprocess
import sys
import types

import pytest
import running

sys.path.insert(0, str(running.ROOT / "benchmarks"))
import pages
import results
import results_page
import results_tables
from results_tables import LARGE, SMALL, TABLES, Step, Table

from tf_autoctx.errors import UserError
from tf_autoctx.report import tables

PLACES = {"data": "data", "runs": "runs", "output": "out"}
TINY = Table(
    "tiny",
    "A tiny table",
    (Step("eval/tiny.py --output={output}"), Step("eval/more.py --output={output}", "more")),
    hours=1,
    pairs=(("new", "old"), ("new, more", "new")),
    columns=("DSC", "Hdb"),
)


def row(method, case, dice, structure="head", truth=10.0):
    about = {"system": "fetal_head", "method": method, "case": case, "group": ""}
    sizes = {"volume_mL": 9.0, "truth_volume_mL": truth}
    return {**about, "structure": structure, "DSC_percent": dice, "Hdb_mm": 1.5, **sizes}


def rows(gains, structure="head"):
    """Two methods of as many runs as there are gains, each of two cases."""
    return [
        row(method, f"seed {seed}/c{case}", 80.0 + case + gain * (method == "new"), structure)
        for method in ("old", "new")
        for seed, gain in enumerate(gains)
        for case in (0, 2)
    ]


# What is declared


def test_all_tables_of_two_cores_take_at_most_forty_hours():
    hours = dict.fromkeys((SMALL, LARGE), 0.0)
    for table in TABLES.values():
        hours[table.machine] += table.hours
    assert hours[LARGE] > 0 and 0 < hours[SMALL] <= results_tables.MOST_HOURS == 40
    assert f"{hours[SMALL]:.1f} of the\n40 hours" in results_page.page()


def command_of(script):
    """The command of a script: its own, as benchmarks have it, or that which it imports."""
    if script.startswith("benchmarks/"):
        return importlib.import_module(pathlib.Path(script).stem).command
    text = (running.ROOT / script).read_text()
    (module,) = re.findall(r"from tf_autoctx\.commands\.(\w+) import command", text)
    return importlib.import_module(f"tf_autoctx.commands.{module}").command


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_command_of_a_table_exists_and_takes_its_flags(table):
    assert any(step.reads for step in table.steps)
    for step in table.steps:
        script, *given = results.words(step, PLACES, jobs=1)
        parsed = command_of(script).parse(given)
        assert parsed["output"] == "out" or step.makes or not step.reads
        assert step.trains == ("jobs" in parsed) == ("--jobs=1" in given)
        assert table.data or "{data}" not in step.words
        if parsed.get("folds"):
            assert parsed["folds"] == table.folds == 5


def test_a_table_that_shares_runs_tells_its_hours_without_them():
    sharing = [table for table in TABLES.values() if table.shares]
    assert len(sharing) > 5
    for table in sharing:
        runs, others = (
            set(re.findall(r"--runs=(\S+)", " ".join(step.words for step in of.steps)))
            for of in (table, TABLES[table.shares])
        )
        assert runs & others and table.alone > table.hours, table.name
    assert "| 0.4 (2.2 without `hc18-scanner`) |" in results_page.page()


def test_every_system_has_a_table_of_minutes_in_float32():
    smoke = [table for name, table in TABLES.items() if name.startswith("smoke-")]
    scripts = {table.steps[0].words.split()[0] for table in smoke}
    assert scripts == {
        f"eval/{system}_tables.py" for system in ("fetal_head", "multi_organ", "embryo", "renderer")
    }
    for table in smoke:
        assert "--precision=float32" in table.steps[0].words and table.hours <= 0.1


def test_rows_of_real_data_name_rows_of_tables():
    for line in results_tables.REAL_ROWS:
        if line.table:
            assert line.of_table in TABLES[line.table].methods and TABLES[line.table].data


# From scores to pages


def test_pages_are_those_of_the_scores():
    """Whoever changes scores, tables or pages by hand: `python benchmarks/results.py --nomake`."""
    docs = running.ROOT / "docs"
    assert (docs / "results_tables.md").read_text("utf-8") == results_page.page()
    text = (docs / "results.md").read_text("utf-8")
    assert pages.filled(text, {"real": results_page.real()}) == text


def test_scores_are_of_declared_tables_and_their_making_is_known():
    names = {path.stem for path in results_page.SCORES.glob("*.csv")}
    record = json.loads((results_page.SCORES / "made.json").read_text())
    assert names <= TABLES.keys() and names == record.keys()
    assert any(name.startswith("smoke-") for name in names)


def test_scores_are_read_as_they_were_written(tmp_path):
    written = rows([1.0 / 3])
    text = results.as_csv(TINY, written)
    columns = "method,run,case,structure,DSC_percent,Hdb_mm,volume_mL,truth_volume_mL"
    first, second, *_ = text.splitlines()
    assert first == columns and second == "old,seed 0,c0,head,80,1.5,9,10"
    assert "new,seed 0,c2,head,82.3333333,1.5,9,10" in text
    (tmp_path / "tiny.csv").write_text(text)
    read = results_page.read("tiny", tmp_path)
    assert results.as_csv(TINY, read) == text
    assert [row["DSC_percent"] for row in read] == [80, 82, 80.3333333, 82.3333333]
    assert results_page.read("other", tmp_path) == []


def test_a_case_without_a_run_is_of_seed_0():
    assert "\nold,seed 0,c0,head,80," in results.as_csv(TINY, [row("old", "c0", 80.0)])


def test_a_table_by_hand(monkeypatch):
    """Gains of 1 to 5 points by run: t = 3 / sqrt(2.5 / 5) = 4.243 of 4 degrees of freedom, and p
    0.0132; one test is not corrected."""
    made = rows([1, 2, 3, 4, 5])
    lines = results_page.scored(TINY, made).splitlines()
    assert lines[0] == "|  | runs | DSC %, over runs | DSC % | Hdb mm |"
    assert lines[2] == "| old | 5 | 81.00 ± 0.00 | 81.00 ± 1.05 | 1.50 ± 0.00 |"
    assert lines[3].startswith("| new | 5 | 84.00 ± 1.58 | 84.00 ± ")
    assert results_page.each_run(TINY, made).splitlines()[0] == (
        "| mean DSC % | seed 0 | seed 1 | seed 2 | seed 3 | seed 4 |"
    )
    assert results_page.each_run(TINY, made).splitlines()[-1] == (
        "| new | 82.00 | 83.00 | 84.00 | 85.00 | 86.00 |"
    )
    (tested,) = results_page.tested(TINY, made).splitlines()[2:]  # the other pair is not there
    assert tested.startswith("| new against old | 5 runs | +3.00 [")
    assert tested.endswith("| 0.0132 (0.0132) |")
    (pooled,) = results_page.tested(TINY, rows([1, 2])).splitlines()[2:]
    assert "| 4 cases of 2 runs |" in pooled


def test_folds_have_their_variance():
    """t = 3 / sqrt(2.5 * (1 / 5 + 1 / 4)) = 2.828, p 0.0474."""
    step = dataclasses.replace(TINY.steps[0], words="eval/tiny.py --folds=5")
    table = dataclasses.replace(TINY, steps=(step,))
    assert table.folds == 5 and TINY.folds is None
    assert "0.0474" in results_page.tested(table, rows([1, 2, 3, 4, 5]))


def test_several_structures_have_a_column_each_and_count_as_their_mean():
    made = [*rows([2.0]), *rows([4.0], "heart")]
    lines = results_page.scored(TINY, made).splitlines()
    assert lines[0] == "|  | runs | DSC %, over runs | head DSC % | heart DSC % |"
    assert lines[3] == "| new | 1 | 84.00 | 83.00 ± 1.41 | 85.00 ± 1.41 |"
    assert results_page.averages(made, "new") == {"seed 0/c0": 83.0, "seed 0/c2": 85.0}


def test_a_row_of_real_data_is_of_the_scores_once_they_are_there(tmp_path, monkeypatch):
    lines = (
        results_tables.Row("heads", "new", "tiny", "new", (90.0, 91.0), "seeds 0, 1"),
        results_tables.Row("heads", "peer", "tiny", "peer"),
    )
    monkeypatch.setattr(results_page, "REAL_ROWS", lines)
    assert results_page.real(tmp_path).splitlines()[2:] == [
        "| heads | new | 90.5 ± 0.7 | 2 of 5 (seeds 0, 1) |",
        "| heads | peer | – | 0 of 5 |",
    ]
    (tmp_path / "tiny.csv").write_text(results.as_csv(TINY, rows([1, 2, 3])))
    assert results_page.real(tmp_path).splitlines()[2:] == [
        "| heads | new | 83.00 ± 1.00 | 3 of 5 |",
        "| heads | peer | – | 0 of 5 |",  # which the table does not have yet
    ]


# Making


@pytest.fixture
def making(tmp_path, monkeypatch):
    """Makes the table `tiny`, whose commands write scores that are a part of the folder here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "SCORES", tmp_path / "scores")
    monkeypatch.setattr(results_page, "write", lambda: calls.append("pages"))
    for module in (results, results_tables):
        monkeypatch.setitem(module.TABLES, "tiny", TINY)
    calls, dice = [], {"all": 80.0, "seeds": 1}

    def run(words):
        calls.append(pathlib.Path(words[1]).name)
        output = words[-1].partition("=")[2]
        code = dice.get("code", 0)
        if code < 2:
            scored = [row("new", f"seed {seed}/c", dice["all"]) for seed in range(dice["seeds"])]
            tables.write(output, scored)
        return types.SimpleNamespace(returncode=code)

    monkeypatch.setattr(results, "subprocess", types.SimpleNamespace(run=run))

    def make(*words, tables="tiny"):
        calls.clear()
        results.main(results.command.parse([f"--tables={tables}", *words]))
        return list(calls)

    return types.SimpleNamespace(make=make, dice=dice, calls=calls, scores=tmp_path / "scores")


def test_a_table_becomes_a_file_of_scores_and_pages(making, tmp_path):
    assert making.make() == ["tiny.py", "more.py", "pages"]
    lines = (making.scores / "tiny.csv").read_text().splitlines()
    assert lines[1:] == ["new,seed 0,c,head,80,1.5,9,10", '"new, more",seed 0,c,head,80,1.5,9,10']
    assert (tmp_path / "runs" / "results" / "tables" / "tiny" / "1" / "scores.csv").exists()
    made = (making.scores / "made.json").read_text()
    assert "revision" in json.loads(made)["tiny"]["machine"]
    making.make()  # the same scores
    assert (making.scores / "made.json").read_text() == made


def test_once_more_from_the_beginning_is_compared_and_kept_apart(making, tmp_path, capsys):
    making.make()
    before = (making.scores / "tiny.csv").read_text()
    making.make("--fresh=again")
    assert "tiny: all 2 lines of scores are the same to the last digit." in capsys.readouterr().out
    assert (tmp_path / "runs" / "results_again" / "tables" / "tiny").is_dir()
    making.dice["all"] = 80.25
    with pytest.raises(UserError, match="tiny: made twice and not the same"):
        making.make("--fresh=once_more")
    told = "tiny: 2 of 2 lines of scores differ, the DSC by 0.25 points at most."
    assert told in capsys.readouterr().out
    assert (making.scores / "tiny.csv").read_text() == before and making.calls[-1] == "pages"


def test_lines_of_one_of_the_two_alone_are_told():
    both = [results.as_csv(TINY, some) for some in (rows([1.0]), rows([1.0, 2.0]))]
    assert results.told(TINY, *both) == "tiny: 4 lines of scores are in one of the two alone."


def test_of_a_command_that_failed_nothing_is_kept(making):
    making.dice["code"] = 3  # it wrote nothing
    with pytest.raises(UserError, match="tiny: 2 of 2 commands failed, see above"):
        making.make()
    assert making.calls == ["tiny.py", "more.py", "pages"] and not making.scores.exists()


def test_scores_of_an_earlier_call_are_none_of_a_command_that_failed(making):
    making.make()
    made = (making.scores / "tiny.csv").read_text()
    making.dice |= {"code": 3, "all": 70.0}
    with pytest.raises(UserError, match="tiny: 2 of 2 commands failed"):
        making.make("--fresh=again")
    with pytest.raises(UserError, match="tiny: 2 of 2 commands failed"):
        making.make()
    assert (making.scores / "tiny.csv").read_text() == made


def test_what_others_need_ends_a_table_where_it_fails(making, monkeypatch):
    step = Step("eval/first.py --output={runs}/other", reads=False, makes="{runs}/other")
    table = dataclasses.replace(TINY, steps=(step, *TINY.steps))
    monkeypatch.setitem(results.TABLES, "tiny", table)
    making.dice["code"] = 3
    with pytest.raises(UserError, match="tiny: 1 of 3 commands failed"):
        making.make()
    assert making.calls == ["first.py", "pages"]


def test_what_is_finished_of_a_table_is_kept_unless_more_is_there(making):
    making.dice |= {"code": 1, "seeds": 2}  # some runs could not be finished
    with pytest.raises(UserError, match="tiny: 2 of 2 commands failed, see above"):
        making.make("--jobs=0")
    assert (making.scores / "tiny.csv").read_text().count("\n") == 5
    assert json.loads((making.scores / "made.json").read_text())["tiny"]["jobs"] == 1
    making.dice |= {"code": 0, "seeds": 3}
    making.make("--jobs=2")
    whole = (making.scores / "tiny.csv").read_text()
    assert whole.count("\n") == 7
    assert json.loads((making.scores / "made.json").read_text())["tiny"]["jobs"] == 2
    making.dice |= {"all": 75.0}
    making.make("--jobs=0")  # nothing is trained, so that it is told of the trainings of before
    assert json.loads((making.scores / "made.json").read_text())["tiny"]["jobs"] == 2
    whole = (making.scores / "tiny.csv").read_text()
    making.dice |= {"code": 1, "seeds": 2, "all": 70.0}
    with pytest.raises(UserError, match="tiny: 2 of 2 commands failed"):
        making.make()
    assert (making.scores / "tiny.csv").read_text() == whole


def test_a_table_that_fails_does_not_keep_others_from_being_made(making, monkeypatch):
    monkeypatch.setitem(results.TABLES, "other", dataclasses.replace(TINY, name="other"))
    making.dice["code"] = 1
    with pytest.raises(UserError, match=r"^tiny: 2 of .* above; other: 2 of .* above\.$"):
        making.make(tables="tiny,other")
    assert sorted(path.stem for path in making.scores.glob("*.csv")) == ["other", "tiny"]


def test_a_method_has_the_name_of_its_table(making, monkeypatch):
    table = dataclasses.replace(TINY, called={"new": "newest"})
    monkeypatch.setitem(results.TABLES, "tiny", table)
    making.make()
    methods = {row["method"] for row in results_page.read("tiny", making.scores)}
    assert methods == {"newest", "newest, more"}


def test_a_folder_of_data_may_have_a_space_in_its_name():
    step = Step("eval/a.py --data_dir={data}/mine --output={output}", trains=False)
    words = results.words(step, PLACES | {"data": "/my data"}, jobs=1)
    assert words == ["eval/a.py", "--data_dir=/my data/mine", "--output=out"]
    wanted = ["make", "-n", "results", "DATA_DIR=/my data"]
    done = subprocess.run(wanted, cwd=running.ROOT, capture_output=True, encoding="utf-8")
    assert "--data_dir='/my data'" in done.stdout


def test_trainings_run_beside_each_other_where_there_are_some():
    words = results.words(Step("eval/a_tables.py --output={output}"), PLACES, jobs=2)
    assert words == ["eval/a_tables.py", "--jobs=2", "--output=out"]
    other = results.words(Step("eval/a.py --output={output}", trains=False), PLACES, jobs=2)
    assert other == ["eval/a.py", "--output=out"]


def test_what_is_made_already_is_not_made_again(making, monkeypatch, tmp_path):
    step = Step("eval/first.py --output={runs}/other", reads=False, makes="{runs}/other")
    table = dataclasses.replace(TINY, steps=(step, TINY.steps[0]))
    monkeypatch.setitem(results.TABLES, "tiny", table)
    assert making.make()[0] == "first.py"
    assert (tmp_path / "runs" / "results" / "other").is_dir()
    assert making.make() == ["tiny.py", "pages"]


def test_real_data_are_asked_for(making, monkeypatch, tmp_path, capsys):
    table = dataclasses.replace(TINY, data="mine")
    monkeypatch.setitem(results.TABLES, "tiny", table)
    with pytest.raises(UserError, match="it is not given; the table tiny needs one with mine/ in"):
        making.make()
    with pytest.raises(UserError, match="there is no folder here/mine"):
        making.make("--data_dir=here")
    (tmp_path / "here" / "mine").mkdir(parents=True)
    assert making.make("--data_dir=here")[0] == "tiny.py"
    monkeypatch.setattr(
        results, "TABLES", {"tiny": table, "b": dataclasses.replace(TINY, name="b")}
    )
    assert [t.name for t in results.chosen(results.Results())] == ["b"]
    assert "tiny: left out, as it needs --data_dir" in capsys.readouterr().out.replace("`", "")
    assert len(results.chosen(results.Results(data_dir="here"))) == 2
    assert [t.name for t in results.chosen(results.Results(data_dir="elsewhere"))] == ["b"]


def test_make_results_passes_its_words_on():
    done = subprocess.run(
        ["make", "-n", "results", "TABLE=smoke-organs", "DATA_DIR=here", "FRESH=again", "JOBS=2"],
        cwd=running.ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    told = "benchmarks/results.py --tables=smoke-organs --data_dir='here' --fresh=again --jobs=2\n"
    assert told in done.stdout
    done = subprocess.run(["make", "-n", "results"], cwd=running.ROOT, capture_output=True)
    assert b"benchmarks/results.py" in done.stdout and b"--" not in done.stdout.splitlines()[-1]


def test_an_unknown_table_is_one_sentence():
    done = running.script("benchmarks/results.py", "--tables=none")
    assert done.returncode == 1 and "--tables=none: expected some of hippocampus," in done.stderr
