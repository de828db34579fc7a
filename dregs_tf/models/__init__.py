"""Keras models whose parts are TFP distributions."""

from dregs_tf.models.base import LatentVariableModel
from dregs_tf.models.conditional import ConditionalBernoulli, ConditionalNormal
from dregs_tf.models.discrete import DiscreteVAE
from dregs_tf.models.gradient_snr import GradientSNR
from dregs_tf.models.hierarchical import HierarchicalVAE
from dregs_tf.models.multimodal import MixtureOfExpertsVAE
from dregs_tf.models.state_space import StateSpaceModel
from dregs_tf.models.structured import StructuredVAE
from dregs_tf.models.vae import VAE
from dregs_tf.models.vrnn import VRNN

__all__ = [
  "VAE",
  "VRNN",
  "ConditionalBernoulli",
  "ConditionalNormal",
  "DiscreteVAE",
  "GradientSNR",
  "HierarchicalVAE",
  "LatentVariableModel",
  "MixtureOfExpertsVAE",
  "StateSpaceModel",
  "StructuredVAE",
]
