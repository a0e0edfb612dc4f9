"""Batches as NumPy arrays, for Keras backends other than TensorFlow."""
