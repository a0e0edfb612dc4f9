"""One HTML page on runs: accuracy against compute, their trees, and a budget to play with."""
