"""Speed and memory of a training step, against other implementations and the hardware's floor."""
