"""Measures SNR, bias and variance of gradient estimators on a Gaussian model: the paper's Fig. 1.

python bin/toy_gaussian.py --num_samples=1,10,100 --bounds=iwae,iwae_dreg
"""

from absl import flags

from dregs_tf import cli, config

_DEFAULTS = config.ToyConfig()

flags.DEFINE_list("bounds", list(_DEFAULTS.bounds), f"Any of {', '.join(config.BOUNDS)}.")
flags.DEFINE_list(
  "num_samples",
  [str(k) for k in _DEFAULTS.num_samples],
  "The K's, samples of each observation. A bound is left out where K is too small for it.",
)
flags.DEFINE_integer("num_trials", _DEFAULTS.num_trials, "Draws of data and parameters.")
flags.DEFINE_integer(
  "num_measurements", _DEFAULTS.num_measurements, "Gradient samples for each trial and K."
)
flags.DEFINE_integer(
  "batch_size",
  _DEFAULTS.batch_size,
  "Observations that a gradient is the mean over, the same throughout a trial. Time grows with it, "
  "variances fall like one over it.",
)
flags.DEFINE_integer(
  "num_observations",
  _DEFAULTS.num_observations,
  "Observations drawn; the parameters are close to the optimum for all of them.",
)
flags.DEFINE_integer("latent_dim", _DEFAULTS.latent_dim, "D, of latents and observations.")
flags.DEFINE_integer("seed", _DEFAULTS.seed, "Seed of data, parameters and noise.")
flags.DEFINE_string(
  "output_dir", _DEFAULTS.output_dir, "Where results.csv, trials.csv and the figures are left."
)


def main():
  """Checks the flags, then loads TensorFlow and measures."""
  settings = cli.from_flags(config.ToyConfig)
  cli.load_runners()
  from dregs_tf import toy_gaussian

  toy_gaussian.run(settings)


if __name__ == "__main__":
  cli.run(main)
