"""What the documents say exists: code, flags, scripts, commands, files and headings."""

import ast
import configparser
import functools
import importlib
import pathlib
import re
import shlex

import pytest
from absl import flags

import tf_autoctx
from tf_autoctx import errors

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("fetal_head", "multi_organ", "embryo", "renderer")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
    ROOT / "serving" / "README.md",
]
SCRIPTS = [*ROOT.glob("*.py"), *(ROOT / "eval").glob("*.py"), *(ROOT / "serving").glob("*.py")]
WING = ["presets.py", "configuration.py", "segmentation.py", "training.py", "system.py"]
# Rows that once named no line, or one that does something else.
ONCE_WRONG = {
    "fetal_head": ("level 0 is 0", r"segmentation\.py: Cascade\.probabilities"),
    "embryo": ("VNet I frozen", r"training\.py: "),
    "renderer": ("cropped to the head", r"^(?!.*--size)"),
}


def names(document):
    return str(document.relative_to(ROOT))


@functools.cache
def defined(path):
    """Names that a module defines: its own, and `Class.name` of what its classes have."""
    found = set()

    def collect(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef):
                found.add(prefix + node.name)
                collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                found.add(prefix + node.name)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + t.id for t in targets if isinstance(t, ast.Name))

    collect(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def command(module):
    return importlib.import_module(f"tf_autoctx.commands.{module}").command


@functools.cache
def module_of(script):
    """Name of the command that a script calls."""
    (name,) = re.findall(
        r"^from tf_autoctx\.commands\.(\w+) import command$",
        script.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return name


@functools.cache
def consoles():
    """{console command: name of its module} of setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options.entry_points"]["console_scripts"].split("\n")
    pairs = [line.split(" = ") for line in lines if line]
    return {name: re.fullmatch(r".*\.(\w+):command", value)[1] for name, value in pairs}


def check_flag(word, module):
    """Checks that a command knows --flag or --flag=value."""
    name, _, value = word.removeprefix("--").partition("=")
    known = command(module).flags()
    if name not in known and name.startswith("no") and name[2:] in known:
        assert known[name[2:]].boolean, f"{module} --{name}"
        return
    assert name in known, f"{module} has no flag --{name}"
    if value:
        try:
            known[name].parse(value)
        except flags.Error as error:
            pytest.fail(f"{module} --{name}: {error}")


def check_reference(text, module):
    """Checks what stands in backquotes in a column of code.

    That is a file or folder (in tf_autoctx/, or a script), with names in it after a colon or with
    flags of its own; flags of the page's training command; or a file of a run's evaluation.
    """
    if text.startswith("evaluation/"):
        return
    if text.startswith("--"):
        for word in text.split():
            check_flag(word, module)
        return
    file, colon, listed = text.partition(": ")
    file, *words = file.split()
    path = next((p for p in (ROOT / "tf_autoctx" / file, ROOT / file) if p.exists()), None)
    assert path, f"{text}: no such file; name the file of a name, such as `losses.py: DiceLoss`"
    for word in words:
        check_flag(word, module_of(path))
    if colon:
        missing = {name.strip() for name in listed.split(",")} - defined(path)
        assert not missing, f"{file} does not define {sorted(missing)}"


def page(system):
    return (ROOT / "docs" / f"{system}_paper.md").read_text(encoding="utf-8")


def rows(system):
    """(section, statement, code) of a page's table."""
    lines = [line for line in page(system).splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert all(len(row) == 3 for row in cells)
    return [tuple(cell.strip() for cell in row) for row in cells[1:]]


@pytest.mark.parametrize("system", PAGES)
def test_every_row_of_a_paper_names_code_that_exists(system):
    for section, statement, code in rows(system):
        references = re.findall(r"`([^`]+)`", code)
        assert references, f"{section} {statement}: names no code"
        for reference in references:
            check_reference(reference, f"train_{system}")


@pytest.mark.parametrize("system", PAGES)
def test_flags_and_files_in_the_text_of_a_paper_exist(system):
    text = re.sub(r"^\|.*$", "", page(system), flags=re.MULTILINE)
    for reference in re.findall(r"`([^`\n]+)`", text):
        if reference.startswith("--") or re.match(r"[\w/]+\.py\b", reference):
            check_reference(reference, f"train_{system}")


@pytest.mark.parametrize("name", ["design", "adding_a_system"])
def test_code_that_other_pages_name_exists(name):
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    references = re.findall(r"`((?:[\w/]+\.py|[\w/]+/)(?:: [^`\n]+)?)`", text)
    own = re.findall(r"^ +(\w+\.py) ", text, re.MULTILINE)  # files of the page's own tree
    named = [text for text in references if "/" in text or text.split(":")[0] not in WING + own]
    assert len(named) > 5
    for reference in named:
        check_reference(reference, "train_fetal_head")


@pytest.mark.parametrize("system", ONCE_WRONG)
def test_rows_that_were_wrong_name_a_line(system):
    statement, pattern = ONCE_WRONG[system]
    (code,) = [code for _, said, code in rows(system) if statement in said]
    assert re.search(pattern, code)


@pytest.mark.parametrize(
    "text, words",
    [
        ("losses.py: DiceLoss, NoLoss", "does not define .'NoLoss'."),
        ("models/usegnet.py: usegnet.variant", "does not define"),
        ("usegnet", "no such file"),
        ("models/unet.py", "no such file"),
        ("--lambda", "no flag --lambda"),
        ("--join=product", "--join: .*should be one of"),
        ("eval/score.py --scale", "score has no flag --scale"),
    ],
)
def test_what_does_not_exist_is_seen(text, words):
    with pytest.raises((AssertionError, pytest.fail.Exception), match=words):
        check_reference(text, "train_fetal_head")


def test_what_exists_is_not():
    for text in (
        "losses.py: DiceLoss, l2",
        "systems/shared/stage.py: AdamStage.losses, Stage.columns",
        "data/phantoms/",
        "--noflips --scale=1",
        "eval/score.py --fill_holes",
        "train_fetal_head.py",
    ):
        check_reference(text, "train_fetal_head")


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_files_and_targets_that_a_document_names_exist(document):
    text = document.read_text(encoding="utf-8")
    for file in re.findall(r"`([\w/]+\.py)\b", text):
        folders = (ROOT, ROOT / "tf_autoctx", *(ROOT / "tests").glob("*/"))
        assert file in WING or any((folder / file).exists() for folder in folders), file
    targets = re.findall(
        r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = re.findall(r"(?:`|^    )make ([\w-]+)", text, re.MULTILINE)
    assert set(named) <= set(targets)


# Command lines


def command_lines(text):
    """Lines of a document, or of a docstring, that call a command of ours: [words].

    A loop's variables take their first value; what stands in brackets or after a # is left out, and
    so is the $ before a command whose output follows.
    """
    text, variables = re.sub(r"\\\n\s*", " ", text), {}
    for line in text.splitlines():
        for name, first in re.findall(r"\bfor (\w+) in (\S+)[^;]*; do", line):
            variables[name] = first
        line = re.sub(r"^\s*(\$ )?(for .*; do)*", "", line)
        if not line.startswith(("python ", "autoctx-")) or line.startswith("python -c"):
            continue
        for name, value in variables.items():
            line = re.sub(rf"\$\{{?{name}\b\}}?", value, line)
        line = re.sub(r"\[.*?\]|\s#.*", "", line)
        for call in line.split("&&"):
            yield shlex.split(call)


def check_command_line(words):
    """Checks that the command of a line exists and takes its flags; ... stands for further ones."""
    shortened, words = "..." in words, [word for word in words if word != "..."]
    if words[0] == "python":
        script = ROOT / words[1]
        assert script.exists(), words[1]
        if script not in SCRIPTS:
            return  # benchmarks and tests have flags of their own
        module, given = module_of(script), words[2:]
    else:
        module, given = consoles()[words[0]], words[1:]
    try:
        command(module).parse(given)
    except errors.UserError as error:
        missing = re.sub(
            r"flag --\w+=None: Flag --\w+ must have a value other than None\. ?", "", f"{error}"
        )
        if missing or not shortened:
            pytest.fail(f"{shlex.join(words)}: {error}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_command_lines_of_documents(document):
    lines = [*command_lines(document.read_text(encoding="utf-8"))]
    for words in lines:
        check_command_line(words)
    shown = ("README.md", "results.md", "adding_a_system.md", "train.md", "predict.md")
    assert lines or document.name not in shown


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name != "setup.py"], ids=names)
def test_command_lines_of_scripts_and_their_commands(script):
    for text in (
        ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))),
        command(module_of(script)).doc,
    ):
        lines = [*command_lines(text)]
        assert lines, "no example"
        for words in lines:
            check_command_line(words)


def test_a_wrong_command_line_is_seen():
    with pytest.raises(pytest.fail.Exception, match="no_such_flag"):
        check_command_line(["python", "predict.py", "--no_such_flag"])
    with pytest.raises(pytest.fail.Exception, match="--steps"):
        check_command_line(["autoctx-train-fetal-head", "--steps=many"])
    text = "for seed in 3 4; do\n  python predict.py --model=$seed \\\n   --input=a  # b\ndone"
    text += "\n    $ autoctx-folds a b\n    3 folds\n    $ python -c 'print(1)'"
    assert [*command_lines(text)] == [
        ["python", "predict.py", "--model=3", "--input=a"],
        ["autoctx-folds", "a", "b"],
    ]


def test_a_page_names_every_console_command_and_its_script():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(autoctx-[a-z-]+)` \| `([\w/]+\.py)` \| ", text, re.MULTILINE))
    assert {name: module_of(ROOT / script) for name, script in told.items()} == consoles()
    for module in consoles().values():
        assert callable(command(module))


# Links


def anchors(document):
    """Anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_links_lead_somewhere(document):
    text = re.sub(r"(?s)```.*?```", "", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("system", PAGES)
def test_a_paper_is_linked_where_it_is_cited(system):
    head = page(system).split("\n\n")[1]
    assert re.search(r"https://(doi\.org/10\.|arxiv\.org/abs/|github\.com/)", head)


def test_citation_and_changes_are_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {tf_autoctx.__version__}\n" in text
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[([\d.]+)\]", changes, re.MULTILINE)[0] == tf_autoctx.__version__
