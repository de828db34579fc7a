"""Bounds the log-likelihood of sequences by particle filters; has an exact model to check with."""

from dregs_tf.sequential.estimation import (
  Estimate,
  check_lengths,
  estimate,
  schedule_for,
  take_two_steps,
)
from dregs_tf.sequential.linear_gaussian import LinearGaussianSSM

__all__ = [
  "Estimate",
  "LinearGaussianSSM",
  "check_lengths",
  "estimate",
  "schedule_for",
  "take_two_steps",
]
