"""What the doctor looks at. Each check returns findings; none of them needs TensorFlow or ONNX Runtime to be sound."""
