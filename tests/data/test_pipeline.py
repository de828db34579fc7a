"""Tests of the batches: what they depend on, what they hold, how they are binarised."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import data

_SHAPE = (4, 3)
_SIZE = 12


def _gray(num_images, seed=0):
  return np.random.RandomState(seed).uniform(size=(num_images, _SIZE)).astype(np.float32)


def _numbered(num_images):
  """Images all of whose pixels hold the number of the image, as a fraction."""
  numbers = np.arange(num_images, dtype=np.float32) / num_images
  return np.tile(numbers[:, None], [1, _SIZE])


def _train(images=None, batch_size=3, seed=1, num_steps=None, **kwargs):
  images = _gray(10) if images is None else images
  return data.train_batches(
    images, batch_size, seed, image_shape=_SHAPE, num_steps=num_steps, **kwargs
  )


def _arrays(batches):
  return [tuple(part.numpy() for part in tf.nest.flatten(batch)) for batch in batches]


def _same(left, right):
  return len(left) == len(right) and all(
    np.array_equal(a, b)
    for x, y in zip(left, right, strict=True)
    for a, b in zip(x, y, strict=True)
  )


# Top and bottom.


@pytest.mark.parametrize("convert", [np.asarray, tf.constant])
def test_top_is_the_upper_rows(convert):
  image = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]], np.float32)
  top, bottom = data.top_and_bottom(convert(image.reshape(1, -1)), (4, 3))
  np.testing.assert_array_equal(top, [[1, 2, 3, 4, 5, 6]])
  np.testing.assert_array_equal(bottom, [[7, 8, 9, 10, 11, 12]])


def test_middle_row_of_odd_height_goes_to_the_bottom():
  top, bottom = data.top_and_bottom(np.arange(15).reshape(1, 15), (5, 3))
  np.testing.assert_array_equal(top, [np.arange(6)])
  np.testing.assert_array_equal(bottom, [np.arange(6, 15)])


def test_top_and_bottom_of_wrong_size():
  with pytest.raises(data.DataError, match="images of 12 pixels do not have the image_shape 4x4"):
    data.top_and_bottom(np.zeros([1, 12]), (4, 4))
  with pytest.raises(data.DataError, match="1x12 have no top and bottom half"):
    data.top_and_bottom(np.zeros([1, 12]), (1, 12))


# Binarization.


def test_binarize_draws_ones_as_often_as_the_gray_value_says():
  # 5 standard errors: each value fails falsely with probability 6e-7, were the seed not fixed,
  # and a probability that is off by 0.008 is found with probability 0.999.
  num_draws = 100_000
  for index, probability in enumerate([0.01, 0.25, 0.5, 0.9]):
    pixels = data.binarize(np.full([num_draws], probability, np.float32), seed=index).numpy()
    assert set(np.unique(pixels)) == {0.0, 1.0}
    error = math.sqrt(probability * (1 - probability) / num_draws)
    assert abs(pixels.mean() - probability) < 5 * error


def test_binarize_draws_pixels_independently():
  # The correlation of neighbors has standard error 1 / sqrt(n): 5 of them, as above.
  pixels = data.binarize(np.full([1000, 100], 0.5, np.float32), seed=0).numpy() - 0.5
  for left, right in [(pixels[:, 1:], pixels[:, :-1]), (pixels[1:], pixels[:-1])]:
    assert abs((left * right).mean() / 0.25) < 5 / math.sqrt(left.size)


def test_binarize_keeps_exact_zeros_and_ones():
  gray = np.repeat(np.array([[0.0], [1.0]], np.float32), 200_000, axis=1)
  np.testing.assert_array_equal(data.binarize(gray, 3), gray)


def test_binarize_is_a_function_of_the_seed():
  gray = _gray(5)
  pixels = data.binarize(gray, 3)
  assert pixels.dtype == tf.float32
  assert pixels.shape == gray.shape
  np.testing.assert_array_equal(pixels, data.binarize(tf.constant(gray), 3))
  np.testing.assert_array_equal(pixels, tf.function(data.binarize)(gray, 3))
  np.testing.assert_array_equal(data.binarize(gray, [4, 5]), data.binarize(gray, (4, 5)))
  assert not np.array_equal(pixels, data.binarize(gray, 4))
  assert not np.array_equal(data.binarize(gray, [4, 5]), data.binarize(gray, [5, 4]))


@pytest.mark.parametrize("seed", [None, 1.5, [1, 2, 3], "one"])
def test_binarize_refuses_what_is_no_seed(seed):
  with pytest.raises(ValueError, match="seed must be"):
    data.binarize(_gray(1), seed)


# Training batches.


@pytest.mark.parametrize("task", data.TASKS)
@pytest.mark.parametrize("start_step", [0, 1, 3, 4, 6, 300])  # 3 steps make an epoch.
def test_batch_depends_on_seed_and_step_only(task, start_step):
  whole = _arrays(_train(task=task).skip(start_step).take(5))
  resumed = _arrays(_train(task=task, start_step=start_step, num_steps=5))
  assert _same(whole, resumed)


def test_same_seed_same_batches_and_another_seed_others():
  first, again, other = (_arrays(_train(seed=seed, num_steps=7)) for seed in (1, 1, 2))
  assert _same(first, again)
  assert not any(_same([x], [y]) for x, y in zip(first, other, strict=True))
  stateless = _arrays(_train(seed=tf.constant([1, 7]), num_steps=7))
  assert not _same(first, stateless)


def test_iterating_twice_gives_the_same_batches():
  batches = _train(num_steps=7)
  assert _same(_arrays(batches), _arrays(batches))


def test_each_epoch_shows_each_image_once_in_an_order_of_its_own():
  batches = _arrays(_train(_numbered(12), num_steps=12, dynamic_binarization=False))
  shown = np.concatenate([batch for (batch,) in batches])[:, 0].reshape(3, 12) * 12
  for order in shown:
    np.testing.assert_allclose(np.sort(order), np.arange(12), atol=1e-5)
  for left, right in itertools.combinations(shown, 2):
    assert not np.array_equal(left, right)
  assert not np.array_equal(shown[0], np.sort(shown[0]))


def test_remainder_of_an_epoch_is_left_out():
  batches = _arrays(_train(_numbered(11), 4, num_steps=4, dynamic_binarization=False))
  for epoch in (batches[:2], batches[2:]):
    numbers = np.concatenate([batch for (batch,) in epoch])[:, 0]
    assert len(np.unique(numbers)) == 8


def test_every_step_binarizes_anew():
  images = np.full([3, _SIZE], 0.5, np.float32)
  batches = _arrays(_train(images, 3, num_steps=20))
  assert len({batch.tobytes() for (batch,) in batches}) == 20


def test_binarized_batches_show_the_same_images_as_the_gray_ones():
  corners = np.float32([[0, 0], [0, 1], [1, 0], [1, 1]]).repeat(6, axis=1)  # Nothing to draw.
  assert _same(
    _arrays(_train(corners, num_steps=9)),
    _arrays(_train(corners, num_steps=9, dynamic_binarization=False)),
  )


def test_training_pixels_are_one_as_often_as_the_gray_value_says():
  # 4,000 draws of each of 24 pixels; 5 standard errors: 24 * 6e-7 = 1.4e-5 of false failures,
  # were the seed not fixed.
  images = _gray(2)
  mean = np.mean([batch.sum(axis=0) for (batch,) in _arrays(_train(images, 2, num_steps=4000))], 0)
  variance = (images * (1 - images)).sum(axis=0) / 4000
  assert np.all(np.abs(mean - images.sum(axis=0)) < 5 * np.sqrt(variance))


def test_structured_batches_are_the_halves_of_the_generative_ones():
  whole = _arrays(_train(num_steps=4))
  for (image,), (context, observation) in zip(
    whole, _arrays(_train(num_steps=4, task="structured")), strict=True
  ):
    np.testing.assert_array_equal(context, image[:, :6])
    np.testing.assert_array_equal(observation, image[:, 6:])


def test_train_spec_and_length():
  endless = _train()
  assert endless.element_spec == tf.TensorSpec([3, _SIZE], tf.float32)
  assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
  assert _train(num_steps=7).cardinality() == 7
  assert len(_arrays(_train(num_steps=7))) == 7
  assert len(_arrays(_train(num_steps=0))) == 0
  half = tf.TensorSpec([3, 6], tf.float32)
  assert _train(task="structured").element_spec == (half, half)


def test_batch_may_hold_all_images():
  batches = _arrays(_train(_numbered(5), 5, num_steps=2, dynamic_binarization=False))
  for (batch,) in batches:
    np.testing.assert_allclose(np.sort(batch[:, 0]), np.arange(5) / 5, atol=1e-6)


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"batch_size": 11}, "batch_size 11 is more than the 10 images"),
    ({"batch_size": 0}, "batch_size must be an integer of at least 1, not 0"),
    ({"batch_size": 2.0}, "batch_size must be an integer of at least 1, not 2.0"),
    ({"start_step": -1}, "start_step must be an integer of at least 0, not -1"),
    ({"num_steps": -1}, "num_steps must be an integer of at least 0, not -1"),
    ({"task": "other"}, "task must be one of .*'other'"),
    ({"images": np.zeros([5, 11], np.float32)}, r"must have shape \[N, 12\].*not \[5, 11\]"),
    ({"images": np.zeros([0, 12], np.float32)}, r"must have shape \[N, 12\].*not \[0, 12\]"),
    ({"images": np.zeros([12], np.float32)}, r"must have shape \[N, 12\].*not \[12\]"),
    ({"seed": None}, "seed must be"),
    ({"seed": 0.5}, "seed must be"),
  ],
)
def test_train_refuses_bad_arguments(kwargs, message):
  with pytest.raises(ValueError, match=message):
    _train(**kwargs)


def test_structured_task_needs_two_rows():
  images, kwargs = np.zeros([5, 12], np.float32), {"image_shape": (1, 12), "task": "structured"}
  for make in (
    lambda: data.train_batches(images, 2, 0, **kwargs),
    lambda: data.eval_batches(images, 2, **kwargs),
  ):
    with pytest.raises(data.DataError, match="no top and bottom half"):
      make()


# Evaluation batches.


def _eval(images, batch_size, **kwargs):
  return data.eval_batches(images, batch_size, image_shape=_SHAPE, **kwargs)


def _joined(batches):
  return np.concatenate([batch for (batch,) in _arrays(batches)])


def test_eval_shows_every_image_once_and_in_order():
  images = _gray(10)
  batches = _eval(images, 4, dynamic_binarization=False)
  assert [len(batch) for (batch,) in _arrays(batches)] == [4, 4, 2]
  assert batches.cardinality() == 3
  np.testing.assert_array_equal(_joined(batches), images)


def test_eval_pixels_do_not_depend_on_batch_size_or_number_of_images():
  images = _gray(600)
  pixels = _joined(_eval(images, 600))
  assert pixels.dtype == np.float32
  assert set(np.unique(pixels)) == {0.0, 1.0}
  for batch_size in (1, 7, 256, 1000):
    np.testing.assert_array_equal(_joined(_eval(images, batch_size)), pixels)
  for num_images in (1, 255, 256, 257):
    np.testing.assert_array_equal(_joined(_eval(images[:num_images], 50)), pixels[:num_images])


def test_eval_pixels_do_not_depend_on_the_seed_of_the_run():
  images = _gray(10)
  pixels = []
  for seed in (1, 2):
    tf.random.set_seed(seed)
    np.random.seed(seed)
    pixels.append(_joined(_eval(images, 5)))
  np.testing.assert_array_equal(*pixels)


def test_eval_pixels_differ_between_images_and_seeds():
  images = np.full([600, 48], 0.5, np.float32)

  def pixels(**kwargs):
    return np.concatenate(list(data.eval_batches(images, 100, image_shape=(6, 8), **kwargs)))

  # 48 fair pixels: two of 600 images are the same with probability 6e-10.
  assert len(np.unique(pixels(), axis=0)) == 600
  assert abs((pixels() != pixels(seed=1)).mean() - 0.5) < 0.02  # 6.8 standard errors.


def test_eval_of_the_structured_task_has_the_same_pixels():
  images = _gray(9)
  context, observation = map(
    np.concatenate, zip(*_arrays(_eval(images, 4, task="structured")), strict=True)
  )
  pixels = _joined(_eval(images, 4))
  np.testing.assert_array_equal(context, pixels[:, :6])
  np.testing.assert_array_equal(observation, pixels[:, 6:])


# Under a distribution strategy.


@pytest.mark.parametrize("task", data.TASKS)
def test_batches_can_be_distributed(task):
  strategy = tf.distribute.MirroredStrategy(["CPU:0"])
  for batches in (_train(num_steps=4, task=task), _eval(_gray(10), 4, task=task)):
    distributed = strategy.experimental_distribute_dataset(batches)
    assert _same(_arrays(batches), _arrays(distributed))
