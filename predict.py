"""Segments images with a finished run or a SavedModel, each on its own grid.

python predict.py --model=runs/fetal_head --input=scan.nii.gz --output=results
python predict.py --model=runs/fetal_head/saved_model --input=scans --output=results --probabilities
python predict.py --model=runs/renderer --input=frame.png --output=results --every_iteration
"""

from tf_autoctx.commands.predict import command

if __name__ == "__main__":
    command()
