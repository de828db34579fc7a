"""Names and limits of the library that can be read without TensorFlow."""

# What `diagnostics.compare` compares by default.
COMPARED = (
  "iwae",
  "iwae_dreg",
  "stl",
  "rws",
  "rws_dreg",
  "dreg_alpha",
  "jvi",
  "jvi_dreg",
)

# With fewer measurements, the test of bias in `diagnostics.compare` is misled too often where
# gradients are skewed.
MIN_MEASUREMENTS = 30
