"""Layer factories: what a convolution becomes.

`FACTORIES` is the registry: a new factory needs a line there.
"""

# The module of each class, loaded when a saved model names it: some need TensorFlow itself.
FACTORIES = {
    "TrainingLayers": "training",
    "DeployLayers": "deploy",
    "GroupedLayers": "grouped",
    "FusedTrainingLayers": "fused",
    "FusedGroupedLayers": "fused",
    "QuantizedLayers": "quantized",
    "ServedLayers": "served",
}
