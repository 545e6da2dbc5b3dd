"""One HTML page of an evaluation, or of several on the same cases, with a viewer of every case.

  python eval/report.py --evaluations=runs/fetal_head/evaluation --output=report.html
  python eval/report.py --evaluations=runs/a/evaluation,runs/b/evaluation --output=report.html

See tf_autoctx/commands/report.py, or --help.
"""

from tf_autoctx.commands.report import command

if __name__ == "__main__":
    command()
