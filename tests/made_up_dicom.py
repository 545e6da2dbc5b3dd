"""DICOM series, slices and files of many frames, made by pydicom."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

CT = "1.2.840.10008.5.1.4.1.1.2"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
CINE = "1.2.840.10008.5.1.4.1.1.3.1"
ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"
EXPLICIT = pydicom.uid.ExplicitVRLittleEndian
SHAPE = (5, 6)  # rows, columns


def stored(z):
    """The stored values of a slice: all differ, and those of slices too."""
    return (np.arange(30).reshape(SHAPE) + 100 * z).astype(np.int16)


def dataset(pixels, uid="1.2.3.4", kind=CT, syntax=EXPLICIT, **tags):
    """A DICOM data set; None removes a tag."""
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = kind
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    made.SOPClassUID, made.SOPInstanceUID = kind, made.file_meta.MediaStorageSOPInstanceUID
    made.SeriesInstanceUID, made.StudyInstanceUID, made.Modality = uid, "1.2.3", "CT"
    made.Rows, made.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        made.NumberOfFrames = len(pixels)
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    big = syntax == pydicom.uid.ExplicitVRBigEndian
    made.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    made["PixelData"].VR = "OW" if pixels.dtype.itemsize == 2 else "OB"
    for name, value in tags.items():
        if value is not None:
            setattr(made, name, value)
        elif name in made:
            delattr(made, name)
    return made


def save(made, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)


def slice_of(z, pixels=None, **tags):
    """A CT slice at z mm, 0.75 mm high and 0.5 mm wide pixels."""
    placed = {
        "PixelSpacing": [0.75, 0.5],
        "ImagePositionPatient": [-7, 3, z],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SliceThickness": 2,
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
    }
    return dataset(stored(int(z)) if pixels is None else pixels, **placed | tags)


def write(folder, heights=(10, 12, 14, 16), name="IM{}.dcm", **tags):
    """A series, the names of whose files run against the heights."""
    for number, z in enumerate(heights):
        save(slice_of(z, **tags), folder / name.format(99 - number))


def expected(heights=(10, 12, 14, 16)):
    return np.stack([stored(z) for z in heights]).astype(np.float32)


def enhanced(positions, slopes=None):
    """An enhanced CT whose frames lie at the heights."""
    frames = []
    for number, z in enumerate(positions):
        frame, place = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [-7, 3, z]
        frame.PlanePositionSequence = [place]
        if slopes:
            scale = pydicom.Dataset()
            scale.RescaleSlope, scale.RescaleIntercept = slopes[number], 0
            frame.PixelValueTransformationSequence = [scale]
        frames.append(frame)
    shared, axes, measures = (pydicom.Dataset() for _ in range(3))
    axes.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.75, 0.5], 5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [axes], [measures]
    return dataset(
        np.stack([stored(z) for z in positions]),
        kind=ENHANCED,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
    )
