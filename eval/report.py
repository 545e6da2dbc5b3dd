"""One HTML page of an evaluation, or of several on the same cases: tables, charts and a viewer of every case.

  python eval/report.py --evaluations=runs/fetal_head/evaluation --output=report.html
  python eval/report.py --evaluations=runs/a/evaluation,runs/b/evaluation --output=report.html   # one over the other

The page needs no network and no other file. Any folder with a scores.csv will do; training scripts also leave what the
viewer shows in views/, and curves and configuration in the run folder above.
"""

from absl import app, flags

from tf_autoctx import errors, html_report

FLAGS = flags.FLAGS
flags.DEFINE_list("evaluations", None, "Folders with scores.csv, of the same cases.", required=True)
flags.register_validator("evaluations", bool, "expected at least one folder")
flags.DEFINE_string("output", None, "HTML file to write.", required=True)


def main(_):
    html_report.write(FLAGS.output, FLAGS.evaluations)


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
