"""A mixture of experts of two modalities, the halves of digits, with exact and biased gradients."""
