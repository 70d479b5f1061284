"""TFDS builders that do not need TensorFlow."""
