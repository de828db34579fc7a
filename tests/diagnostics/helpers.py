"""What the tests of `diagnostics` share."""

import numpy as np

from dregs_tf import bounds, diagnostics


def row_of(gradients, of_reference):
  """What `compare` says of an estimator with these gradients, [num_measurements, P]."""
  both = np.stack([of_reference, gradients], axis=1).astype(np.float64)
  first, second = both[: len(both) // 2], both[len(both) // 2 :]
  center = first.mean(axis=0)
  shifted = both - center
  measured = diagnostics._Measurements(
    center=center,
    total=shifted.sum(axis=0),
    squares=((shifted[:, 1:] - shifted[:, :1]) ** 2).sum(axis=0),
    grams=shifted @ shifted.transpose(0, 2, 1),
    projections=np.concatenate([first @ second.mean(axis=0).T, second @ center.T]),
  )
  estimators = diagnostics._plan([bounds.get("stl")], [5])[5]
  return diagnostics._summarize(measured, estimators, 5, {})[1]
