"""The toy experiment (Sec. 6.1, Fig. 1), and its results."""
