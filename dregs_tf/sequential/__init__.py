"""Bounds the log-likelihood of sequences by particle filters; has an exact model to check with."""

from dregs_tf.sequential.estimation import Estimate, estimate, schedule_for, take_two_steps
from dregs_tf.sequential.linear_gaussian import LinearGaussianSSM

__all__ = ["Estimate", "LinearGaussianSSM", "estimate", "schedule_for", "take_two_steps"]
