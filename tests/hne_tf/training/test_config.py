import random

import ml_collections

from hne_tf.training import config as configs


def test_the_digest_depends_on_settings_but_not_on_their_order_or_on_circumstances():
    one = configs.default()
    fields = list(one.to_dict().items())
    random.Random(0).shuffle(fields)
    shuffled = ml_collections.ConfigDict(dict(fields))
    shuffled.data.data_dir = "/elsewhere"
    shuffled.training.factory = "grouped"
    shuffled.distribution.operation_threads = 3
    assert configs.digest(one) == configs.digest(shuffled)
    shuffled.objective.alpha = 0.25
    assert configs.digest(one) != configs.digest(shuffled)


def test_differences_are_named_with_both_values():
    one, other = configs.default(), configs.default()
    other.seed = 3
    other.model.branching = (1, 2)
    assert configs.differences(one, other) == [
        ("model.branching", ((1, 2, 2, 2, 2), (1, 2))),
        ("seed", (0, 3)),
    ]
