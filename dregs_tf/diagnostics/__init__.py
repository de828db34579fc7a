"""Measures gradient estimators on a user's own model."""

from dregs_tf.diagnostics.measure import compare
from dregs_tf.diagnostics.report import Comparison, Row
from dregs_tf.diagnostics.sequences import compare_sequences

__all__ = ["Comparison", "Row", "compare", "compare_sequences"]
