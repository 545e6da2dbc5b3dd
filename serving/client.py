"""Segments images with a model that TensorFlow Serving holds, each on its own grid.

python serving/client.py --model=fetal_head --input=scan.nii.gz --output=results
python serving/client.py --model=fetal_head --input=scans --output=results --requests_in_flight=4
python serving/client.py --model=renderer --input=frames --output=results --protocol=grpc
"""

from tf_autoctx.commands.client import command

if __name__ == "__main__":
    command()
