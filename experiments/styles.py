"""Defines the color and the dashes of each bound in figures."""

from dregs_tf import output
from dregs_tf.training import config

_C = output.COLORS

# An original estimator and its doubly reparameterized form share a color: the original is dashed.
STYLES = {
  "elbo": (_C["black"], output.DASHED),
  "elbo_stl": (_C["black"], output.SOLID),
  "iwae": (_C["blue"], output.DASHED),
  "iwae_dreg": (_C["blue"], output.SOLID),
  "iwae_dreg_norm": (_C["blue"], output.DASH_DOTTED),
  "rws": (_C["vermilion"], output.DASHED),
  "rws_dreg": (_C["vermilion"], output.SOLID),
  "rws_dreg_norm": (_C["vermilion"], output.DASH_DOTTED),
  "jvi": (_C["green"], output.DASHED),
  "jvi_dreg": (_C["green"], output.SOLID),
  "stl": (_C["purple"], output.SOLID),
  "dreg_alpha": (_C["orange"], output.SOLID),
  # Bounds of sequences share colors with RWS, which no panel shows with them.
  "fivo": (_C["vermilion"], output.DASHED),
  "fivo_dreg": (_C["vermilion"], output.SOLID),
}
# Bounds beyond the paper's get the remaining styles.
STYLES |= zip(
  (name for name in config.BOUNDS if name not in STYLES),
  (style for style in output.STYLES if style not in STYLES.values()),
  strict=False,
)
