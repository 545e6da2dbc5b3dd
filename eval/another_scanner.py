"""2D ultrasound as a made-up scanner would show it: a target corpus whose truth is known.

  python eval/another_scanner.py --data_dir=my_scanner --output=other_scanner

See tf_autoctx/commands/another_scanner.py, or --help.
"""

from tf_autoctx.commands.another_scanner import command

if __name__ == "__main__":
    command()
