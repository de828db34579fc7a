"""A test of a model under tf.distribute: every replica draws noise of its own."""

import subprocess
import sys

_SCRIPT = """
import numpy as np
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from dregs_tf import models

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
  model = models.VAE(np.full(6, 0.4), latent_dim=3, hidden_units=(5, 4))
  model.compile(num_samples=5, seed=1, jit_compile=False)
original = model.estimate

def estimate(*args, **kwargs):
  result = original(*args, **kwargs)
  proposal = model.proposal(args[0], None).distribution
  noise = (result.samples - proposal.loc) / proposal.scale
  tf.print(tf.shape(args[0])[0], tf.reduce_sum(noise), output_stream="file://NOISE")
  return result

model.estimate = estimate
x = np.random.RandomState(0).binomial(1, 0.4, (16, 6)).astype("float32")
before = model.get_weights()
history = model.fit(x, batch_size=8, verbose=0).history
assert np.isfinite(history["bound"][0])
assert model.optimizer.iterations == 2
assert all((new != old).any() for new, old in zip(model.get_weights(), before))
"""


def test_replicas_draw_different_noise(tmp_path):
  noise = tmp_path / "noise.txt"
  script = _SCRIPT.replace("NOISE", str(noise))
  result = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr[-2000:]
  noise = [line.split() for line in noise.read_text().splitlines()]
  # Two steps on two replicas, half of the batch of 8 on each.
  assert [size for size, _ in noise] == ["4"] * 4
  assert len({total for _, total in noise}) == 4
