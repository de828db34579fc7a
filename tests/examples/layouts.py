"""How a layer that takes rows is applied to samples [num_samples, batch_size, size]."""

import tensorflow as tf


def apply_to_rows(layer, samples: tf.Tensor) -> tf.Tensor:
  """Returns the layer's outputs, [num_samples, batch_size, ...], one for each row of `samples`."""
  rows = tf.reshape(samples, [-1, samples.shape[-1]])
  outputs = layer(rows)
  leading = tf.shape(samples)[:-1]
  outputs_shape = tf.concat([leading, outputs.shape[1:]], axis=0)
  return tf.reshape(outputs, outputs_shape)
