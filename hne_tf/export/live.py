"""The depth-first steps of a model in this process."""

from hne_tf.export import signatures
from hne_tf.exported.manifest import step_entry
from hne_tf.exported.steps import TensorFlowSteps
from hne_tf.models.ensemble import TreeEnsemble


class LiveSteps(TensorFlowSteps):
    """The steps of a model in this process, with the weights that it has now.

    Args:
      model: built by any factory.
    """

    def __init__(self, model: TreeEnsemble) -> None:
        functions = {
            f"step_{step.size}": signatures.step_signature(model, step).get_concrete_function()
            for step in model.tree.steps
        }
        steps = [step_entry(step) for step in model.tree.steps]
        super().__init__(steps, model.images.shape, model.images.class_names, functions)
