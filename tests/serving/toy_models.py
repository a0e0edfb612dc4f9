"""Graphs that are saved in a moment and whose answers are known."""

import tensorflow as tf

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = (1, 2, 4)


class Ensemble(tf.Module):
    """Four convolutional networks of different weights."""

    def __init__(self, seed=7):
        generator = tf.random.Generator.from_seed(seed)
        self.kernels = [tf.Variable(generator.normal([3, 3, 1, 6])) for _ in range(max(SIZES))]
        self.heads = [tf.Variable(generator.normal([6, len(CLASSES)])) for _ in range(max(SIZES))]

    def signature(self, size):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.uint8, name="images")])
        def predict(images):
            pixels = tf.cast(images, tf.float32) / 255.0
            leaves = [
                tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(pixels, kernel, 1, "SAME")), [1, 2]) @ head
                for kernel, head in zip(self.kernels[:size], self.heads, strict=False)
            ]
            logits = tf.add_n(leaves) / size
            return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

        return predict

    def step(self):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 6], tf.float32, name="cache"),
                tf.TensorSpec([None, len(CLASSES)], tf.float32, name="running_sum"),
            ]
        )
        def predict(cache, running_sum):
            total = running_sum + cache @ self.heads[1]
            return {"running_sum": total, "probabilities": tf.nn.softmax(total / 2.0)}

        return predict


def save_ensemble(folder, seed=7):
    model = Ensemble(seed)
    model.functions = {f"ensemble_{size}": model.signature(size) for size in SIZES}
    model.functions["step_2"] = model.step()
    model.functions["serving_default"] = model.functions["ensemble_4"]
    tf.saved_model.save(model, str(folder), signatures=model.functions)


class Sum(tf.Module):
    """Sums rows and adds a constant, which tells versions apart; refuses negative numbers."""

    def __init__(self, constant):
        self.constant = tf.Variable(float(constant))

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="values")])
    def sums(self, values):
        with tf.control_dependencies([tf.debugging.assert_non_negative(values)]):
            return {"sums": tf.reduce_sum(values, axis=1) + self.constant}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="seconds")])
    def spin(self, seconds):
        end = tf.timestamp() + tf.cast(tf.reduce_max(seconds), tf.float64)
        turns = tf.while_loop(lambda turn: tf.timestamp() < end, lambda turn: [turn + 1], [0])
        return {"turns": tf.fill(tf.shape(seconds), turns[0])}
