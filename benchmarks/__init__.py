"""Measures speed and memory against other implementations and the hardware's floor."""
