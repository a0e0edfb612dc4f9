"""One request over several servers: who computes which leaves, and what becomes of their sums.

Needs no TensorFlow, but for `connections`.
"""
