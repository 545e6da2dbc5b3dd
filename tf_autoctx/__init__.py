"""Auto-context segmentation of medical images: four published systems, trained, evaluated and served."""

import os

# What TensorFlow's C++ side reports on start-up helps nobody who did not ask for it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__version__ = "0.1.0"
