"""What computes the signatures of a version: TensorFlow or LiteRT."""
