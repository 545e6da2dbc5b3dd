"""Images in, `tf.data` out: files and geometry, data sets, phantoms, augmentation, pipelines."""
