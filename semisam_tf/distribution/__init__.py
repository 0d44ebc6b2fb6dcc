"""Several devices that share a batch: who they are, and what their replicas have in common. Keras, data: elsewhere."""
