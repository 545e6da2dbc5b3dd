"""Growth charts of measured cases: centiles against age, z-scores, changes between visits.

  python eval/growth.py --evaluation=runs/normal/evaluation --ages=ages.csv --output=growth

See tf_autoctx/commands/growth.py, or --help.
"""

from tf_autoctx.commands.growth import command

if __name__ == "__main__":
    command()
