"""Published models: manifests, SavedModels and TFLite files as one, anytime sessions, profiles."""
