"""Auto-context segmentation of medical images: four published systems, trained, evaluated and served."""

__version__ = "0.1.0"
