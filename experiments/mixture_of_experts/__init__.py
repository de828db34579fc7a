"""Trains a mixture of experts on two halves of digits, with exact and biased gradients."""
