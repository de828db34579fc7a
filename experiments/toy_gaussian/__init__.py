"""Runs the toy experiment (Sec. 6.1, Fig. 1); its results are here as well."""
