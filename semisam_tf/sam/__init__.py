"""The SAM branch: prompts from predictions, a frozen model in ONNX Runtime, targets for the student.

Knows nothing of TensorFlow or torch. An exported model is a folder with `encoder.onnx`, `decoder.onnx` and
`manifest.json`; the manifest is all that this package needs to drive it.
"""
