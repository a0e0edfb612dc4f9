"""Layer factories: what a convolution becomes."""
