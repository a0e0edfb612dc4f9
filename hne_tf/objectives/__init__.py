"""Training objectives over leaf logits, as Keras losses.

Ruiz and Verbeek, "Anytime Inference with Distilled Hierarchical Neural
Ensembles", AAAI 2021, section 3.2. Every loss maps labels `[batch]` and leaf
logits `[batch, leaves, classes]` to one value per example `[batch]`: sums, not
means, over leaves and ensemble sizes, so that each leaf trains at full strength.
"""

from hne_tf.objectives.distillation import CoDistillation, HierarchicalDistillation, LinearRamp
from hne_tf.objectives.independent import Independent
from hne_tf.objectives.subtree import Subtree

__all__ = ["CoDistillation", "HierarchicalDistillation", "Independent", "LinearRamp", "Subtree"]
