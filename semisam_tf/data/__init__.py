"""From files to batches: volumes, splits, preprocessing, augmentation, two-stream batches. No TensorFlow here."""
