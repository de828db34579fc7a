"""Runs the paper's experiments, and makes their tables and figures. Needs the checkout."""
