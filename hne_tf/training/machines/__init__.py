"""What a run trains on: its machines, their devices and kernels."""
