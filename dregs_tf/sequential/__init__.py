"""Bounds on the log-likelihood of sequences by particle filters, and models to try them on."""

from dregs_tf.sequential.estimation import Estimate, estimate

__all__ = ["Estimate", "estimate"]
