"""The list of deliberate faults fits the code, and the benchmark tells which nobody notices."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "benchmarks"))
import mutations

ROOT = mutations.ROOT
ROOMS = ("models", "data", "training", "systems/shared", "report", "commands")
WINGS = ("fetal_head", "multi_organ", "embryo", "renderer")
FILES = ("losses", "metrics", "biometry", "postprocessing", "export", "serving", "files")


def test_every_fault_has_its_place_and_its_tests():
    listed = mutations.listed()
    mistakes = [mistake for mutation in listed for mistake in mutation.mistakes(ROOT)]
    assert not mistakes, "\n".join(mistakes)
    names = [mutation.name for mutation in listed]
    assert len(names) == len(set(names)) >= 60


def test_no_room_is_left_out():
    files = [mutation.file for mutation in mutations.listed()]
    for room in (*ROOMS, *(f"systems/{wing}" for wing in WINGS)):
        assert sum(file.startswith(f"tf_autoctx/{room}/") for file in files) >= 3, room
    assert {f"tf_autoctx/{name}.py" for name in FILES} <= set(files)


@pytest.fixture
def tree(tmp_path):
    """A package of one function, and its tests."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "doubling.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "tests" / "test_code.py").write_text(
        "import doubling, time\n"
        "def test_of_zero():\n    assert doubling.double(0) == 0\n"
        "def test_of_three():\n    assert doubling.double(3) == 6\n"
        "def test_hangs():\n    time.sleep(doubling.double(0) * 100)\n"
    )
    return tmp_path


def fault(replacement, *tests, text="2 * x"):
    return mutations.Mutation("a fault", "doubling.py", text, replacement, tests)


@pytest.mark.parametrize(
    "replacement, test, told",
    [
        ("3 * x", "tests/test_code.py", "noticed: a fault by tests/test_code.py::test_of_three, "),
        ("3 * x", "tests/test_code.py::test_of_zero", "NOT NOTICED: a fault, "),
        ("x + 1", "tests/test_code.py::test_hangs", "noticed: a fault (hangs), "),
        ("2 *", "tests/test_code.py", "NOT NOTICED, the tests cannot be run (exit code "),
        (
            "3 * x",
            "tests/test_code.py::test_none",
            "NOT NOTICED, the tests cannot be run (exit code ",
        ),
    ],
)
def test_a_fault_is_tried_and_taken_back(tree, replacement, test, told):
    before = (tree / "doubling.py").read_text()
    timeout = 3 if test.endswith("hangs") else 60
    is_noticed, line = mutations.verdict(tree, fault(replacement, test), timeout)
    assert line.startswith(told), line
    assert is_noticed == told.startswith("noticed")
    assert (tree / "doubling.py").read_text() == before


def test_a_fault_that_does_not_fit_is_told(tree):
    file = "tests/test_code.py"
    assert not list(fault("3 * x", file, f"{file}::test_of_zero").mistakes(tree))
    for wrong, told in (
        (fault("3 * x", file, text="x"), "its text occurs 2 times in doubling.py"),
        (fault("3 * x", file, text="y"), "its text occurs 0 times in doubling.py"),
        (fault("2 * x", file), "expected once"),
        (fault("3 * x", "tests/test_other.py"), "there is no test tests/test_other.py"),
        (fault("3 * x", f"{file}::test_of"), f"there is no test {file}::test_of."),
    ):
        (mistake,) = wrong.mistakes(tree)
        assert told in mistake


def test_a_copy_is_of_the_tree_alone(tree, tmp_path_factory):
    for left_out in (".git/config", "runs/a/config.json", "tests/__pycache__/test_code.pyc"):
        (tree / left_out).parent.mkdir(parents=True)
        (tree / left_out).touch()
    copy = mutations.copied(tree, tmp_path_factory.mktemp("copies") / "0")
    held = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file())
    assert held == ["doubling.py", "tests/test_code.py"]


def test_tests_of_one_file_are_run_together():
    of = [fault("", *tests) for tests in (("a::x", "b"), ("a::y",), ("b::z", "a::x"))]
    assert mutations.by_file(of) == [["a::x", "a::y"], ["b"]]
