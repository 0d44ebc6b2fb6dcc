"""The files around a SavedModel that TensorFlow Serving and Docker Compose read."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from semisam_tf.atomic import replacing

# The release of tensorflow-serving-api in constraints.txt.
IMAGE = "tensorflow/serving:2.21.0"

_MODELS_CONFIG = """\
# For tensorflow_model_server --model_config_file. All versions stay on disk; the newest is served.
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
  }}
}}
"""

_COMPOSE = """\
# docker compose -f {folder}/compose.yaml up
services:
  {name}:
    image: {image}
    environment:
      # By itself TensorFlow uses oneDNN only on CPUs with AVX-512 and its like; with AVX2 alone it is 4 times faster.
      TF_ENABLE_ONEDNN_OPTS: "1"
    command:
      - --model_config_file=/models/{name}/models.config
      # The server's own limit is 30 s; a large scan takes longer on a CPU.
      - --rest_api_timeout_in_ms=600000
      # No --enable_batching: it joins requests along the first axis of every input, and whole scans of different
      # sizes cannot be joined. Inside a request the windows are a loop of their own.
    ports:
      - "127.0.0.1:8500:8500"  # gRPC
      - "127.0.0.1:8501:8501"  # REST
    volumes:
      - type: bind
        source: .
        target: /models/{name}
        read_only: true
    read_only: true
    tmpfs:
      - /tmp
    healthcheck:
      # The image has neither curl nor wget.
      test:
        - CMD
        - bash
        - -c
        - >-
          exec 3<>/dev/tcp/127.0.0.1/8501 &&
          printf 'GET /v1/models/{name} HTTP/1.0\\r\\n\\r\\n' >&3 &&
          grep -q '"AVAILABLE"' <&3
      interval: 30s
      timeout: 10s
      retries: 3
      start_period: 120s
    restart: unless-stopped
"""


def write_server_files(output: Path, name: str) -> None:
    """Writes `models.config` and `compose.yaml` beside the versions; the server looks at folders with numbers only."""
    for filename, text in (("models.config", _MODELS_CONFIG), ("compose.yaml", _COMPOSE)):
        with replacing(output / filename) as temporary:
            temporary.write_text(text.format(name=name, image=IMAGE, folder=output), encoding="utf-8")


def next_version(output: Path) -> int:
    """One more than the largest number among the folders of `output`; 1 if there is none."""
    versions = [int(path.name) for path in output.glob("*") if path.name.isdigit() and path.is_dir()]
    return max(versions, default=0) + 1


def nifti_bytes(image: np.ndarray, spacing_mm: Sequence[float]) -> bytes:
    """float32 [X, Y, Z, C] as a .nii.gz whose axes run right, anterior, superior; for warm-up."""
    header = bytearray(352)
    x, y, z, channels = image.shape
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 4, x, y, z, channels, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 16, 32)
    struct.pack_into("<8f", header, 76, 1, *spacing_mm, 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    struct.pack_into("<B", header, 123, 2)
    struct.pack_into("<2h", header, 252, 1, 0)  # qform with no turn
    struct.pack_into("4s", header, 344, b"n+1")
    return gzip.compress(bytes(header) + image.astype("<f4").transpose(3, 2, 1, 0).tobytes(), 1)


def write_warmup(folder: Path, name: str, image: np.ndarray, spacing_mm: Sequence[float]) -> None:
    """Writes `tf_serving_warmup_requests`: a request of each signature that computes, sent before the model is offered.

    Args:
        folder: `assets.extra` of a version.
        name: Of the model on the server.
        image: float32 [X, Y, Z, C], a small scan.
        spacing_mm: Its voxel size.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    inputs = {
        "serving_default": {
            "volume": tf.make_tensor_proto(image),
            "spacing_mm": tf.make_tensor_proto(np.asarray(spacing_mm, np.float32)),
        },
        # As an array of objects: NumPy's own byte strings end before their last zeros.
        "nifti": {"nifti_bytes": tf.make_tensor_proto(np.array(nifti_bytes(image, spacing_mm), object), tf.string, [])},
    }
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        for signature, tensors in inputs.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = name, signature
            for key, tensor in tensors.items():
                request.inputs[key].CopyFrom(tensor)
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
