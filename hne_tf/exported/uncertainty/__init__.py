"""How sure an answer is, and what follows from it. NumPy alone."""
