"""The tables that `make results` makes: what each runs, its hours, and the data that it needs.

Hours are of two quiet cores, and estimated: 3000 steps of USegNet with 8 filters on a phantom of
96^3 voxels, on the network's grid 39^3, take 5 minutes of a core, of USegNet-DS-HAS 9; other
systems as measured (docs/results.md, docs/performance.md).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

MOST_HOURS = 40.0  # of all tables of `SMALL` together
SMALL, LARGE = "2 cores", "larger"  # machines
RUNS = 5  # seeds or folds that a row wants before it is believed


@dataclasses.dataclass(frozen=True)
class Step:
    """A command of a table; every one of them goes on where it was stopped.

    Attributes:
      words: of a script and its flags. {data} stands for DATA_DIR, {runs} for the folder of all
        runs, {output} for the folder of the step's own tables.
      label: what its rows are called behind their method; "" is nothing.
      reads: whether its {output} is a part of the table.
      makes: what it makes, where it cannot go on: with that there, it is done.
      trains: whether it trains runs, several at a time where that is asked for.
    """

    words: str
    label: str = ""
    reads: bool = True
    makes: str = ""
    trains: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of docs/results_tables.md, and docs/results/NAME.csv with the scores of its runs.

    Attributes:
      name: as in `make results TABLE=name`.
      title: a heading.
      steps: what makes it.
      hours: of two quiet cores, estimated, once the tables that it shares runs with are there.
      pairs: [(method, another that it is tested against)].
      called: {method of its commands: name in this table}.
      methods: rows, in order; empty: all there are.
      columns: metrics; of several structures the DSC of each is shown.
      data: folder of DATA_DIR that it needs; "": none, as phantoms are made.
      machine: that it is for.
      shares: name of the table whose runs it has too; "": none.
      alone: hours with these runs, where it shares any.
    """

    name: str
    title: str
    steps: tuple[Step, ...]
    hours: float
    pairs: tuple[tuple[str, str], ...] = ()
    called: Mapping[str, str] = dataclasses.field(default_factory=dict)
    methods: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("DSC", "Conf", "Jacc", "Adb", "Hdb")
    data: str = ""
    machine: str = SMALL
    shares: str = ""
    alone: float = 0.0

    @property
    def folds(self) -> int | None:
        """How many its runs have, if any."""
        found = re.search(r"--folds=(\d+)", " ".join(step.words for step in self.steps))
        return int(found[1]) if found else None


def _heads(
    runs: str, variants: str, flags: str = "", steps_of: str = "level", filters: int = 8
) -> str:
    """Fetal heads, by default by the paper's protocol: every level has all steps."""
    return (
        f"eval/fetal_head_tables.py --variants={variants} --steps=3000 --steps_of={steps_of} "
        f"--seeds=0,1,2,3,4 --phantom_size=96,96,96 --base_filters={filters}{flags} "
        f"--runs={{runs}}/{runs} --output={{output}}"
    )


def _ablation(
    flag: str, values: tuple[str, ...], default: str, variants: str, in_table_1: str = ""
) -> tuple[Step, ...]:
    """Steps for each value of a flag, after the one that table 1 has, there perhaps as another
    variant."""
    return (
        Step(_heads("fetal_head", in_table_1 or variants), default),
        *(
            Step(_heads(f"fetal_head_{flag}_{value}", variants, f" --{flag}={value}"), value)
            for value in values
        ),
    )


DS, HAS, CTX = "USegNet-DS", "USegNet-DS-HAS", "USegNet-DS-HAS-Ctx"
LEVEL_1 = f"{CTX}, level 1"
# Of the same seed and steps they are one network, to the last digit: it is trained once.
HAS_IS_LEVEL_1 = {LEVEL_1: HAS}
UAM, SAM = f"{DS}-UAM", f"{DS}-SAM"
SHARED = "levels share the steps"
# The simple thing that a user would do instead: the changes of --preset=standard.
CHANGED = "strong augmentation"
CHANGES = " --shift=4 --rotation=15 --scaling=0.15 --intensity_jitter=0.1 --gamma=0.3 --noise=0.03"
FETAL_HEADS = (
    Table(
        "fetal-head",
        "Fetal head: table 1 by the paper's protocol",
        (
            Step(_heads("fetal_head", f"USegNet,{DS},{UAM},{SAM},{CTX}")),
            Step(_heads("fetal_head_shared", CTX, steps_of="variant"), SHARED),
            Step(_heads("fetal_head_changed", "USegNet", CHANGES), CHANGED),
        ),
        hours=2.8,
        pairs=(
            (CTX, HAS),
            (CTX, DS),
            (CTX, "USegNet"),
            (HAS, DS),
            (HAS, UAM),
            (HAS, SAM),
            (UAM, DS),
            (SAM, DS),
            (DS, "USegNet"),
            (f"{CTX}, {SHARED}", HAS),
            (CTX, f"USegNet, {CHANGED}"),
        ),
        called=HAS_IS_LEVEL_1,
        methods=(
            "USegNet",
            f"USegNet, {CHANGED}",
            DS,
            UAM,
            SAM,
            HAS,
            CTX,
            f"{CTX}, {SHARED}",
        ),
    ),
    Table(
        "attention-norm",
        "Fetal head: normalization in the attention modules",
        _ablation("attention_norm", ("output", "every"), "none", HAS, in_table_1=CTX),
        hours=0.9,
        shares="fetal-head",
        alone=1.7,
        pairs=((f"{HAS}, output", f"{HAS}, none"), (f"{HAS}, every", f"{HAS}, none")),
        called=HAS_IS_LEVEL_1,
        methods=tuple(f"{HAS}, {norm}" for norm in ("none", "output", "every")),
    ),
    Table(
        "plain-decoder",
        "Fetal head: what stands where a module is missing",
        _ablation("plain_decoder", ("bare",), "conv", f"USegNet,{DS}"),
        hours=0.5,
        shares="fetal-head",
        alone=1,
        pairs=((f"{DS}, bare", f"{DS}, conv"), (f"{DS}, bare", "USegNet, bare")),
    ),
    Table(
        "side-labels",
        "Fetal head: labels of the side branches",
        _ablation("side_labels", ("majority", "soft"), "corner", DS),
        hours=0.5,
        shares="fetal-head",
        alone=0.8,
        pairs=((f"{DS}, majority", f"{DS}, corner"), (f"{DS}, soft", f"{DS}, corner")),
    ),
    Table(
        "context",
        "Fetal head: how level 2 learns from level 1",
        (
            Step(_heads("fetal_head", CTX), "cached"),
            Step(_heads("fetal_head_augmented", CTX, " --context=augmented"), "augmented"),
            Step(_heads("fetal_head_warm", CTX, " --warm_start"), "warm start"),
            Step(_heads("fetal_head_dropout", CTX, " --context_dropout=0.3"), "dropout 0.3"),
        ),
        hours=2.4,
        shares="fetal-head",
        alone=3.2,
        pairs=tuple(
            (f"{CTX}, {label}", f"{CTX}, cached")
            for label in ("augmented", "warm start", "dropout 0.3")
        ),
        methods=tuple(
            f"{method}, {label}"
            for label in ("cached", "augmented", "warm start", "dropout 0.3")
            for method in (LEVEL_1, CTX)
        ),
    ),
    Table(
        "fetal-head-peers",
        "Fetal head: slices, patches, no skips, and levels joined by concatenation",
        (
            Step(
                _heads(
                    "fetal_head_peers",
                    "p-USegNet,2D-USegNet,3D-DeconvNet",
                    " --equal_voxels --patch_size=32",
                )
            ),
            Step(_heads("fetal_head", f"USegNet,{CTX}")),
            Step(_heads("fetal_head", f"{CTX}-concat")),
        ),
        hours=3,
        shares="fetal-head",
        alone=4,
        pairs=(
            ("USegNet", "p-USegNet"),
            ("USegNet", "2D-USegNet"),
            ("USegNet", "3D-DeconvNet"),
            (CTX, f"{CTX}-concat"),
        ),
    ),
    Table(
        "fetal-head-modules",
        "Fetal head: table 2, number of modules",
        (
            Step(
                _heads(
                    "fetal_head",
                    variants="USegNet-DS,USegNet-DS-SAM-1,USegNet-DS-SAM-12,USegNet-DS-SAM,"
                    "USegNet-DS-UAM-1,USegNet-DS-UAM-12,USegNet-DS-UAM",
                )
            ),
        ),
        hours=1.2,
        shares="fetal-head",
        alone=2,
        pairs=tuple(
            (f"USegNet-DS-{module}", DS)
            for module in ("SAM-1", "SAM-12", "SAM", "UAM-1", "UAM-12", "UAM")
        ),
    ),
    Table(
        "fetal-head-wide",
        "Fetal head: table 1 at the paper's width",
        (Step(_heads("fetal_head_wide", f"USegNet,{DS},{CTX}", filters=32)),),
        hours=20,
        pairs=((CTX, HAS), (CTX, DS), (CTX, "USegNet"), (HAS, DS)),
        called=HAS_IS_LEVEL_1,
        methods=("USegNet", DS, HAS, CTX),
        machine=LARGE,
    ),
)


def _hc18(variants: str, corpus: str, flags: str, source: str = "{data}/fetal_head_2d/hc18") -> str:
    """Renderers of hc18's images, scored on a corpus."""
    return (
        f"eval/renderer_tables.py --seeds=0,1,2,3,4 --variants={variants} --data_dir={source} "
        "--size=96 --base_filters=8 --steps=1000 --samples_per_epoch=500 --validation_fraction=0.1 "
        f"{flags} --corpus={corpus} --runs={{runs}}/hc18 --output={{output}}"
    )


OTHER = "{runs}/hc18_other"
OTHER_SCANNER = Step(
    f"eval/another_scanner.py --data_dir={{data}}/fetal_head_2d/hc18 --output={OTHER}",
    reads=False,
    makes=OTHER,
    trains=False,
)


def _rendered(corpus: str, cases: str = "") -> tuple[Step, ...]:
    """Steps of a corpus: each method has the weight of the Dice terms that suits it."""
    return (
        Step(_hc18("Orig-S2T,Orig-S2T-augmented", corpus, f"--dice_weight=10{cases}")),
        Step(_hc18("S2T-p,S2T", corpus, f"--dice_weight=100{cases}")),
    )


AUGMENTED = "Orig-S2T, augmented"
RENDERED = (
    "Orig-T2T",
    "Orig-S2T",
    AUGMENTED,
    "S2T-p, iteration 0",
    "S2T-p",
    "S2T, iteration 0",
    "S2T",
)
RENDERED_PAIRS = (
    ("S2T", "Orig-S2T"),
    ("S2T-p", "Orig-S2T"),
    ("S2T", AUGMENTED),
    ("S2T-p", AUGMENTED),
    ("S2T", "S2T-p"),
    ("S2T", "S2T, iteration 0"),
    ("S2T-p", "S2T-p, iteration 0"),
)
SCANNERS, DICE = ("DSC", "Hdb"), ("DSC",)
MODES = ("separate", "end-to-end", "without context")
ORGAN_ROWS = tuple(f"level {level}, {mode}" for mode in MODES[:2] for level in (1, 2)) + (
    f"level 2, {MODES[2]}",
)
ORGAN_PAIRS = (
    ("level 2, end-to-end", "level 1, end-to-end"),
    ("level 2, end-to-end", "level 2, separate"),
    ("level 2, separate", "level 2, without context"),
    ("level 2, end-to-end", "level 2, without context"),
)
PEER = "DynUNet"


def _peer(runs: str, method: str) -> Step:
    """A peer for every run of a method, trained for as long."""
    flags = f"--runs={{runs}}/{runs} --method={method} --output={{output}}"
    return Step(f"benchmarks/peer_training.py {flags}")


REAL = (
    Table(
        "hippocampus",
        "Real MRI: hippocampus, five folds",
        (
            Step(
                f"eval/fetal_head_tables.py --variants={DS},{CTX} --steps=1500 "
                "--steps_of=level --seeds=0 --folds=5 --data_dir={data}/hippocampus --scale=1 "
                "--base_filters=16 --samples_per_epoch=300 --validation_fraction=0 "
                "--postprocessing=none --runs={runs}/hippocampus --output={output}"
            ),
            _peer("hippocampus", CTX),
        ),
        hours=3.5,
        pairs=((CTX, HAS), (CTX, DS), (HAS, DS), (CTX, PEER)),
        called=HAS_IS_LEVEL_1,
        methods=(DS, HAS, CTX, PEER),
        data="hippocampus",
    ),
    Table(
        "head-neck",
        "Real CT: organs of head and neck, five folds",
        (
            Step(
                "eval/multi_organ_tables.py --seeds=0 --folds=5 --data_dir={data}/head_neck_ct "
                "--downsampling=2,1 --base_filters=8 --patch_size=32 --steps=1500 "
                "--samples_per_epoch=2250 --learning_rate=3e-3 --validation_fraction=0 "
                "--loss=paper --postprocessing=none --runs={runs}/head_neck --output={output}"
            ),
            _peer("head_neck", "end_to_end"),
        ),
        hours=7,
        pairs=(*ORGAN_PAIRS, ("level 2, end-to-end", PEER)),
        methods=(*ORGAN_ROWS, PEER),
        columns=DICE,
        data="head_neck_ct",
    ),
    Table(
        "hc18-scanner",
        "Real ultrasound: hc18 to a made-up scanner",
        (
            OTHER_SCANNER,
            Step(
                _hc18(
                    "Orig-T2T",
                    f"{OTHER}/cases.csv",
                    "--dice_weight=10 --cases=12",
                    f"{OTHER}/cases.csv",
                )
            ),
            *_rendered(f"{OTHER}/cases.csv", " --cases=12"),
        ),
        hours=2.2,
        pairs=RENDERED_PAIRS,
        methods=RENDERED,
        columns=SCANNERS,
        data="fetal_head_2d",
    ),
    Table(
        "hc18-es",
        "Real ultrasound: hc18 to another hospital's scanners (es)",
        _rendered("{data}/fetal_head_2d/es"),
        hours=0.4,
        shares="hc18-scanner",
        alone=2.2,
        pairs=RENDERED_PAIRS,
        methods=RENDERED[1:],
        columns=SCANNERS,
        data="fetal_head_2d",
    ),
)
PHANTOMS = (
    Table(
        "organs",
        "Made-up CT: the demo",
        (
            Step(
                "eval/multi_organ_tables.py --seeds=0,1,2,3,4 --runs={runs}/organs "
                "--output={output}"
            ),
        ),
        hours=2.8,
        pairs=ORGAN_PAIRS,
        methods=ORGAN_ROWS,
        columns=DICE,
    ),
    Table(
        "embryo",
        "Mouse embryo: table 1 on the demo's phantoms",
        (
            Step(
                "eval/embryo_tables.py --seeds=0,1,2,3,4 --runs={runs}/embryo --output={output}",
                reads=False,
            ),
            Step(
                "eval/sliding_windows.py --run={runs}/embryo/auto_context_seed_0 --window=32 "
                "--output={runs}/embryo_windows",
                reads=False,
                trains=False,
            ),
            Step(
                "eval/embryo_tables.py --seeds=0,1,2,3,4 --runs={runs}/embryo "
                "--sliding_windows={runs}/embryo_windows --output={output}"
            ),
        ),
        hours=2.5,
        pairs=(
            ("end-to-end", "with auto-context"),
            ("with auto-context", "without auto-context"),
            ("with auto-context", "initial"),
        ),
        columns=DICE,
    ),
    Table(
        "scanners",
        "Online rendering: phantoms of two scanners of one clinic",
        (
            Step(
                "eval/renderer_tables.py --seeds=20,21,22,23,24 --runs={runs}/scanners "
                "--variants=Orig-T2T,Orig-S2T,Orig-S2T-augmented,S2T-p,S2T --output={output}"
            ),
        ),
        hours=1.5,
        pairs=RENDERED_PAIRS,
        methods=RENDERED,
        columns=SCANNERS,
    ),
)
# Of minutes, in float32: they show that a table that is made twice is the same to the last digit.
SMOKE = (
    Table(
        "smoke-fetal-head",
        "Of minutes: fetal head",
        (
            Step(
                f"eval/fetal_head_tables.py --variants={CTX} --seeds=0,1 --steps=300 "
                "--samples_per_epoch=75 --phantom_size=32,32,32 --phantom_cases=5,2 --scale=1 "
                "--base_filters=2 --learning_rate=0.01 --precision=float32 "
                "--runs={runs}/smoke_fetal_head --output={output}"
            ),
        ),
        hours=0.05,
        pairs=((CTX, LEVEL_1),),
    ),
    Table(
        "smoke-organs",
        "Of minutes: organs",
        (
            Step(
                "eval/multi_organ_tables.py --modes=end_to_end --seeds=0,1 --steps=6 "
                "--samples_per_epoch=3 --batch_size=1 --phantom_size=24,24,24 --phantom_cases=3,2 "
                "--base_filters=2 --patch_size=8 --depth=2 --learning_rate=0.01 "
                "--precision=float32 --runs={runs}/smoke_organs --output={output}"
            ),
        ),
        hours=0.05,
        pairs=(("level 2, end-to-end", "level 1, end-to-end"),),
        columns=DICE,
    ),
    Table(
        "smoke-embryo",
        "Of minutes: mouse embryo",
        (
            Step(
                "eval/embryo_tables.py --modes=auto_context --seeds=0,1 --steps=6 "
                "--samples_per_epoch=3 --phantom_size=24,32,24 --phantom_spacing=0.4 "
                "--phantom_cases=5,2 --low_size=16 --body_box=24 --ventricle_box=16 "
                "--base_filters=2 --depth=2 --kernel=3 "
                "--learning_rate=0.01 --precision=float32 --runs={runs}/smoke_embryo "
                "--output={output}"
            ),
        ),
        hours=0.05,
        pairs=(("end-to-end", "with auto-context"),),
        columns=DICE,
    ),
    Table(
        "smoke-renderer",
        "Of minutes: online rendering",
        (
            Step(
                "eval/renderer_tables.py --variants=S2T --seeds=0,1 --steps=60 "
                "--samples_per_epoch=60 --phantom_size=32,32 --phantom_cases=8,2 --size=32 "
                "--base_filters=2 --iterations=2 --precision=float32 "
                "--runs={runs}/smoke_renderer --output={output}"
            ),
        ),
        hours=0.05,
        pairs=(("S2T", "S2T, iteration 0"),),
        methods=("S2T, iteration 0", "S2T"),
        columns=SCANNERS,
    ),
)
TABLES = {table.name: table for table in (*REAL, *FETAL_HEADS, *PHANTOMS, *SMOKE)}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table that docs/results.md begins with.

    Attributes:
      data: what is segmented.
      method: in words.
      table: of `TABLES`, whose runs it is of once they are there; "": of none.
      of_table: the method there.
      earlier: mean DSC of every run of before, in percent.
      runs: what these are, in words.
    """

    data: str
    method: str
    table: str = ""
    of_table: str = ""
    earlier: tuple[float, ...] = ()
    runs: str = ""


MRI, CT = "hippocampus MRI", "head and neck CT"
MADE_UP, ES = "hc18 to a made-up scanner", "hc18 to `es`"
ONE, THREE = "seed 0, `Ts`", "seeds 0, 1, 2"
REAL_ROWS = (
    Row(MRI, "USegNet-DS", "hippocampus", DS, (91.14,), f"{ONE}, 3000 steps"),
    Row(MRI, "USegNet-DS-HAS, level 1 of the next", "hippocampus", HAS, (90.92,), ONE),
    Row(MRI, "**USegNet-DS-HAS-Ctx**, level 2", "hippocampus", CTX, (91.03,), ONE),
    Row(MRI, "five folds of USegNet-DS as one SavedModel", "", "", (91.30,), ONE),
    Row(MRI, "peer: MONAI's DynUNet", "hippocampus", PEER),
    Row(CT, "level 1, end-to-end", "head-neck", "level 1, end-to-end", (70.76,), ONE),
    Row(CT, "level 2, without context", "head-neck", "level 2, without context", (64.58,), ONE),
    Row(CT, "level 2, separate", "head-neck", "level 2, separate", (76.78,), ONE),
    Row(CT, "**level 2, end-to-end**", "head-neck", "level 2, end-to-end", (77.81,), ONE),
    Row(
        CT,
        "the same, Dice and cross entropy, 3000 steps, post-processed",
        earlier=(79.11, 80.22),
        runs="seeds 0, 1, `Ts`",
    ),
    Row(CT, "both of these as one SavedModel", earlier=(80.85,), runs="seeds 0, 1, `Ts`"),
    Row(CT, "peer: MONAI's DynUNet", "head-neck", PEER),
    Row(MADE_UP, "trained on the target", "hc18-scanner", "Orig-T2T", (96.95, 97.07, 97.14), THREE),
    Row(MADE_UP, "U-Net", "hc18-scanner", "Orig-S2T", (94.95, 80.22, 25.56), THREE),
    Row(
        MADE_UP,
        "peer: U-Net, strong augmentation",
        "hc18-scanner",
        AUGMENTED,
        (97.08, 62.94, 96.56),
        THREE,
    ),
    Row(
        MADE_UP,
        "S2T-p, not rendered",
        "hc18-scanner",
        "S2T-p, iteration 0",
        (93.21, 96.25, 88.10),
        THREE,
    ),
    Row(MADE_UP, "S2T-p", "hc18-scanner", "S2T-p", (95.28, 96.30, 93.80), THREE),
    Row(
        MADE_UP,
        "S2T, not rendered",
        "hc18-scanner",
        "S2T, iteration 0",
        (94.92, 95.37, 95.73),
        THREE,
    ),
    Row(MADE_UP, "**S2T**", "hc18-scanner", "S2T", (95.50, 95.73, 95.89), THREE),
    Row(ES, "U-Net", "hc18-es", "Orig-S2T", (97.67, 95.04, 97.53), THREE),
    Row(ES, "peer: U-Net, strong augmentation", "hc18-es", AUGMENTED, (97.61, 97.03, 97.66), THREE),
    Row(ES, "S2T-p, not rendered", "hc18-es", "S2T-p, iteration 0", (97.38, 97.29, 97.28), THREE),
    Row(ES, "S2T-p", "hc18-es", "S2T-p", (97.56, 97.34, 97.30), THREE),
    Row(ES, "S2T, not rendered", "hc18-es", "S2T, iteration 0", (97.29, 96.93, 97.00), THREE),
    Row(ES, "**S2T**", "hc18-es", "S2T", (97.39, 96.99, 97.02), THREE),
)
