"""ONNX Runtime's sessions, on the execution providers that were asked for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


def open_session(
    model: Path | bytes,
    providers: Sequence[str] = (CPU,),
    allow_cpu: bool = False,
    threads: int | None = None,
    gpu_mem_limit_bytes: int | None = None,
    gpu_id: int = 0,
) -> Any:
    """Builds an `onnxruntime.InferenceSession` of a file, or a model's bytes, that really runs where it was asked to.

    Raises:
        RuntimeError: ONNX Runtime is absent, or gives another provider (it falls back silently).
        ValueError: No provider, or a memory limit or number of a GPU that cannot be.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(
            "Expected ONNX Runtime. Install a flavour: pip install 'semisam-tf[cpu]' or 'semisam-tf[gpu]'."
        ) from error
    if not providers:
        raise ValueError(f"Expected at least one execution provider, e.g. {CPU}. Received: providers={providers}.")
    if gpu_id < 0 or (gpu_mem_limit_bytes is not None and gpu_mem_limit_bytes <= 0):
        raise ValueError(
            "Expected a memory limit above 0 bytes or none, and a GPU's number of at least 0. "
            f"Received: gpu_mem_limit_bytes={gpu_mem_limit_bytes}, gpu_id={gpu_id}."
        )
    available = onnxruntime.get_available_providers()
    if CUDA in providers and CUDA in available:
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    # Spinning threads of ONNX Runtime would take TensorFlow's cores between the calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    wanted = [(name, _provider_options(name, gpu_mem_limit_bytes, gpu_id)) for name in providers if name in available]
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=wanted or [(CPU, {})]
    )
    got = session.get_providers()
    missing = [name for name in providers if name not in got]
    if missing:
        name = "a model of bytes" if isinstance(model, bytes) else model.name
        message = (
            f"Expected ONNX Runtime to run {name} on {', '.join(missing)}; it offers {available}. Install the "
            "flavour for it (pip install 'semisam-tf[gpu]'), choose a GPU and memory that are there (--sam_gpu_id, "
            f"--sam_gpu_mem_gib), or run on the CPU: --sam_providers={CPU}, or --sam_allow_cpu in training. "
            f"Received: providers={list(providers)}, got={got}."
        )
        if not allow_cpu:
            raise RuntimeError(message)
        logging.warning("SAM runs on the CPU. %s", message)
    return session


def _provider_options(name: str, gpu_mem_limit_bytes: int | None, gpu_id: int) -> dict[str, str]:
    if name != CUDA:
        return {}
    # No search among convolution algorithms and no TF32: the same embedding in each process, at float32's precision.
    options = {"device_id": str(gpu_id), "cudnn_conv_algo_search": "DEFAULT", "use_tf32": "0"}
    if gpu_mem_limit_bytes is not None:
        # By its own way of doubling, the arena would meet the limit long before the tensors do.
        options |= {"gpu_mem_limit": str(gpu_mem_limit_bytes), "arena_extend_strategy": "kSameAsRequested"}
    return options
