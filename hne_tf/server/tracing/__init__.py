"""What a prediction is known by: its trace id, and its line in the access log."""
