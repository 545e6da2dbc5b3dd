"""Which images the weights of a run have seen, so that another training that starts from them holds
none of these out, and no table has them: scores would be of what was learnt by heart."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from absl import logging

from tf_autoctx.data import datasets
from tf_autoctx.data.datasets import Scans
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.training.runs import Run

FACT = "seen"  # of config.json and of the model card
LEARNT, VALIDATED = "learnt", "validated"
UNTOLD = "untold"  # the models among those started from that do not tell what they have seen
Seen = Mapping[str, list[str]]  # {LEARNT or VALIDATED: marks of images, UNTOLD: paths}, sorted
SHOWN = 5  # names of cases in a message


def cases_of(run: Run) -> datasets.Dataset:
    """The data set of the very files that a run was trained on.

    Raises:
      UserError: config.json lacks something; the files are gone or have changed.
    """
    try:
        source = run.flags["data_dir"] or run.folder / "phantoms"
        cases = datasets.of_flags(source, run.flags)
    except KeyError as error:
        raise run.broken(error) from None
    if datasets.fingerprint(cases) != run.fingerprint:
        raise UserError(
            f"{source}: other data than those of {run.folder}; expected the files that it was "
            "trained on."
        )
    return cases


def after(scans: Scans, before: Seen | None = None) -> Seen:
    """What weights have seen after a training on such scans, from weights that have seen `before`;
    what was learnt and has validated too is learnt.

    A mark of several cases is left out: it is of a channel that stands for one that is missing.
    """
    marks = Counter(mark for cases in scans.values() for own in cases.values() for mark in set(own))
    shared = {mark for mark, cases in marks.items() if cases > 1}
    learnt, validated = (sorted(_marks(scans[name]) - shared) for name in ("train", "validation"))
    return joined({LEARNT: learnt, VALIDATED: validated}, before or {})


def joined(seen: Seen, other: Seen) -> Seen:
    """What weights have seen that stem from two trainings."""
    learnt = {*seen.get(LEARNT, ()), *other.get(LEARNT, ())}
    validated = {*seen.get(VALIDATED, ()), *other.get(VALIDATED, ())} - learnt
    untold = sorted({*seen.get(UNTOLD, ()), *other.get(UNTOLD, ())})
    told = {LEARNT: sorted(learnt), VALIDATED: sorted(validated)}
    return told | ({UNTOLD: untold} if untold else {})


def require_new(
    flag: tuple[str, pathlib.Path], before: Seen, scans: Scans, scored: Collection[str]
) -> None:
    """Requires that weights to start from have not seen what is to be scored.

    Cases that are to validate and were learnt from get a warning: they choose checkpoints.

    Args:
      flag: that gives the weights, and its value.
      before: what they have seen.
      scans: of the new training.
      scored: names of its cases that are scored, test cases or, where there are none, those that
        validate.

    Raises:
      FieldError: they have learnt from some of them, or test cases have chosen their checkpoints.
    """
    learnt = set(before.get(LEARNT, ()))
    known = learnt | set(before.get(VALIDATED, ()))
    flattered = _of(scans["validation"], learnt)
    leaked = [name for name in scored if name in {*_of(scans["test"], known), *flattered}]
    if leaked:
        raise FieldError(
            *flag,
            f"its weights have seen {_listed(leaked)} of {len(scored)} cases that are scored "
            "here, whose scores would be no held-out ones; expected a model that has not, such as "
            "one of the same `seed` and `fold`.",
        )
    if flattered:
        logging.warning(
            "%s: its weights have learnt from %s of %d cases that validate here: the checkpoints "
            "that these choose may be later ones than new cases would.",
            flag[1],
            _listed(flattered),
            len(scans["validation"]),
        )


def unseen(
    source: str, cases: Sequence[datasets.Case], compared: Sequence[Run]
) -> list[datasets.Case]:
    """The cases to score that no network of some runs has learnt from, and that chose none of their
    checkpoints; of others a warning tells how many there are.

    Args:
      source: of the cases, for messages.
      cases: to score.
      compared: runs that are scored on the same cases.

    Raises:
      UserError: there are none.
    """
    facts: list[Seen] = [run.facts.get(FACT, {UNTOLD: [str(run.folder)]}) for run in compared]
    for path in sorted({path for fact in facts for path in fact.get(UNTOLD, ())}):
        logging.warning(
            "%s: does not tell which cases its weights have learnt from; where those of %s are "
            "among them, the scores flatter.",
            *(path, source),
        )
    known = {mark for fact in facts for name in (LEARNT, VALIDATED) for mark in fact.get(name, ())}
    new = [case for case in cases if known.isdisjoint(datasets.marks(case))]
    folders = ", ".join(str(run.folder) for run in compared)
    if not new:
        raise UserError(
            f"{source}: all {len(cases)} cases with a label trained or validated {folders}; "
            "expected some that did not."
        )
    if len(new) < len(cases):
        logging.warning(
            "%s: %d of %d cases with a label trained or validated %s, and are left out.",
            *(source, len(cases) - len(new), len(cases), folders),
        )
    return new


def _marks(cases: Mapping[str, list[str]]) -> set[str]:
    return {mark for marks in cases.values() for mark in marks}


def _of(cases: Mapping[str, list[str]], marks: Collection[str]) -> list[str]:
    """Names of the cases of which a channel has one of the marks."""
    return [name for name, own in cases.items() if not set(own).isdisjoint(marks)]


def _listed(names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} ({', '.join(names[:SHOWN])}{more})"
