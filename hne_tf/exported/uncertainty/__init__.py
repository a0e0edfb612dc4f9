"""How sure an answer is, and what follows from it. Needs no TensorFlow."""
