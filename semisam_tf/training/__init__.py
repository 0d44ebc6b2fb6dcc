"""Training: the step, the loop, checkpoints, and where TensorFlow meets SAM."""
