"""Compares evaluations on the cases that they have in common, by paired tests of every metric.

  python eval/compare.py --evaluations=runs/a/evaluation,runs/b/evaluation --output=runs/a_against_b

See tf_autoctx/commands/compare.py, or --help.
"""

from tf_autoctx.commands.compare import command

if __name__ == "__main__":
    command()
