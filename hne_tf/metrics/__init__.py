"""Keras metrics over leaf logits, one value per ensemble size or leaf.

Every metric is updated with labels (see `hne_tf.objectives.labels`) and leaf logits
`[batch, leaves, classes]`; `result()` is a dictionary such as `{"accuracy_1": …,
"accuracy_2": …}`.

A new file beside the others needs a line here.
"""

from hne_tf.metrics.accuracy import BalancedAccuracy, EnsembleAccuracy, LeafAccuracy
from hne_tf.metrics.calibration import ExpectedCalibrationError
from hne_tf.metrics.columns import PerSize
from hne_tf.metrics.diversity import Disagreement, LeafVariance
from hne_tf.metrics.monotonicity import LostAnswers
from hne_tf.metrics.scores import BrierScore, NegativeLogLikelihood
