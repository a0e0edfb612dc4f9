"""Training objectives over leaf logits, as Keras losses."""
