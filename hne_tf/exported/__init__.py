"""Published models: the manifest, the steps of a SavedModel or TFLite file, anytime sessions."""
