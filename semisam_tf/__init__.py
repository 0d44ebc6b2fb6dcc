"""Semi-supervised 3D medical image segmentation in Keras, taught by SAM through ONNX Runtime.

Nothing heavy is imported here: `python -m semisam_tf.train --help` has to answer at once.
"""

import sys

from semisam_tf import flavour

__version__ = "0.1.0"

if not flavour.is_diagnosis(sys.orig_argv):
    flavour.require_any()
