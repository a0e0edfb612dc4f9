"""What an answer of each ensemble size would take now."""
