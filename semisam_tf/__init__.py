"""Semi-supervised 3D medical image segmentation in Keras, taught by SAM through ONNX Runtime.

Nothing heavy is imported here: `python -m semisam_tf.train --help` has to answer at once.
"""

import os
import sys

from semisam_tf import flavour

__version__ = "0.1.0"

if not flavour.is_diagnosis(sys.orig_argv):
    flavour.require_any()
# TensorFlow reads it while it is imported. By itself it uses oneDNN only on CPUs with AVX-512 and its like; on one with
# AVX2 alone a training step is 4 times faster with it (BUILD.md).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
