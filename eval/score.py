"""Scores a folder of label images against the ground truth of the same file names.

  python eval/score.py --predictions=runs/demo/predictions --labels=data/labels --output=scores
  python eval/score.py --predictions=results --labels=labels --output=scores --fill_holes

See tf_autoctx/commands/score.py, or --help.
"""

from tf_autoctx.commands.score import command

if __name__ == "__main__":
    command()
