"""The depth-first steps of a model in this process."""

from hne_tf.export import signatures
from hne_tf.exported.interface import StepSignature
from hne_tf.exported.saved_model import runnable
from hne_tf.exported.steps import SignatureSteps
from hne_tf.models.ensemble import TreeEnsemble


def live_steps(model: TreeEnsemble) -> SignatureSteps:
    """The steps of a model, with the weights that it has now.

    Args:
      model: built by any factory.
    """
    functions = {
        f"step_{step.size}": runnable(
            signatures.step_signature(model, step).get_concrete_function()
        )
        for step in model.tree.steps
    }
    steps = [StepSignature.of(step) for step in model.tree.steps]
    images = model.images
    return SignatureSteps(steps, images.shape, images.class_names, model.average, functions)
