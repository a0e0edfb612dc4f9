"""From a trained workdir to a published, verified SavedModel."""
