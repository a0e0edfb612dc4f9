"""Networks cut into blocks, written once against a layer factory."""
