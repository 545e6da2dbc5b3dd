"""Fetal head in 2D ultrasound across scanners: self-play on a source corpus (Yang et al. 2018).

python train_renderer.py                                            # on phantoms
python train_renderer.py --variant=S2T-p --corpus=my_scanner        # images/ and labels/
python train_renderer.py --variant=Orig-S2T --work_dir=runs/orig    # a row of the table
python train_renderer.py --preset=paper --corpus=my_decathlon_folder
"""

from tf_autoctx.commands.train_renderer import command

if __name__ == "__main__":
    command()
