"""Tests of the compiled training step: its matrix products, its operations, its XLA program."""

import operator

import keras
import numpy as np
import pytest
import tensorflow as tf

from dregs_tf import bounds, models
from tests.problems import every_bound
from tests.processes import Forked

BATCH, DIM, LATENT, NUM_SAMPLES = 4, 12, 3, 6
PRODUCTS = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"}
X = np.random.default_rng(0).integers(0, 2, (BATCH, DIM)).astype("float32")


def model(bound: bounds.Bound | str, **options) -> models.VAE:
  result = models.VAE(np.full(DIM, 0.3), latent_dim=LATENT, hidden_units=(7, 6))
  result.compile(keras.optimizers.Adam(), bound=bound, num_samples=NUM_SAMPLES, seed=1, **options)
  return result


def step_of(model: models.VAE, jit_compile: bool = False):
  model.optimizer.build(model.trainable_variables)
  return tf.function(model.train_step, jit_compile=jit_compile, autograph=False)


def gradient_of(model: models.VAE, bound):
  """A step without the optimizer and the metrics, which take long to trace."""

  @tf.function(autograph=False)
  def gradient(x):
    with tf.GradientTape() as tape:
      estimate = model.estimate(x, bound=bound, num_samples=NUM_SAMPLES, seed=[0, 1])
      objective = tf.reduce_mean(estimate.objective)
    return tape.gradient(objective, model.trainable_variables)

  return gradient


def operations(function) -> list[str]:
  """Types of the operations of a traced function, those of its functions included."""
  definition = function.get_concrete_function(tf.constant(X)).graph.as_graph_def()
  functions = operator.attrgetter("library.function")(definition)
  nodes = [definition.node, *(function.node_def for function in functions)]
  return [node.op for part in nodes for node in part]


def num_products(function) -> int:
  return sum(operation in PRODUCTS for operation in operations(function))


# Forward and backward of encoder and decoder, three layers each; the input needs no gradient.
PRODUCTS_OF_IWAE = 17


@pytest.fixture(scope="module")
def iwae() -> models.VAE:
  return model("iwae")


def test_the_products_of_iwae(iwae):
  assert num_products(step_of(iwae)) == PRODUCTS_OF_IWAE
  assert num_products(gradient_of(iwae, "iwae")) == PRODUCTS_OF_IWAE


@pytest.mark.parametrize("bound", every_bound(), ids=str)
def test_no_bound_costs_more_matrix_products_than_iwae(bound, iwae):
  assert num_products(gradient_of(iwae, bound)) <= PRODUCTS_OF_IWAE


@pytest.mark.parametrize("bound", ["iwae_dreg", "rws", "jvi_dreg", "vimco_star"])
def test_no_step_costs_more_matrix_products_than_iwaes(bound):
  assert num_products(step_of(model(bound))) <= PRODUCTS_OF_IWAE


def test_trained_factors_cost_backward_passes_of_the_encoder_alone():
  """Four, of five products each, which see 1 / K of the decoder's rows."""
  assert num_products(step_of(model("iwae_cv"))) <= PRODUCTS_OF_IWAE + 4 * 5


@pytest.mark.parametrize("options", [{}, {"num_backward_samples": 2, "gradient_statistics": True}])
def test_nothing_runs_in_python_or_on_the_host_alone(options):
  found = set(operations(step_of(model("jvi_dreg", **options))))
  host = {
    "PyFunc",
    "EagerPyFunc",
    "PyFuncStateless",
    "HostConst",
    "Print",
    "PrintV2",
    "StringFormat",
  }
  assert not found & host
  # Stateful generators would make a resumed run another one.
  assert not {name for name in found if name.startswith("Random")}


def test_the_step_is_one_xla_program():
  # In a process of its own: finding the program takes long where many functions have been traced.
  status, _, err = Forked(check_that_the_step_is_one_xla_program).finish()
  assert status == 0, err[-3000:]


def check_that_the_step_is_one_xla_program():
  step = step_of(model("iwae_dreg"), jit_compile=True)
  program = step.experimental_get_compiler_ir(tf.constant(X))(stage="hlo")
  assert f"f32[{NUM_SAMPLES},{BATCH},{DIM}]" in program
  assert "custom-call" not in program
  for outside in ("infeed", "outfeed", "send(", "recv("):
    assert outside not in program
  assert np.isfinite(step(tf.constant(X))["bound"])
