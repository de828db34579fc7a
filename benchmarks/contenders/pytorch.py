"""Implements one-pass IWAE-DReG in PyTorch: a hook on z scales its gradient by wbar."""

import math

import torch
from torch.nn import functional

from benchmarks.contenders import DATA_DIM, EPSILON, HIDDEN, LATENT_DIM, LEARNING_RATE


def make(name: str, batch_size: int, num_samples: int):
  """Makes steps of `eager` or `compile`, also with `-tf32` or `-bfloat16`; on a GPU if it can."""
  kind, _, precision = name.partition("-")
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_default_device(device)
  torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
  torch.manual_seed(0)
  encoder = _mlp(DATA_DIM, 2 * LATENT_DIM)
  decoder = _mlp(LATENT_DIM, DATA_DIM)
  parameters = [*encoder.parameters(), *decoder.parameters()]
  optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, eps=EPSILON, fused=True)
  x_all = (torch.rand(2000, DATA_DIM) < 0.2).float()

  def objective(x, noise):
    loc, raw = encoder(x).chunk(2, dim=-1)
    scale = functional.softplus(raw + 0.25)
    z = loc + scale * noise
    gated = z.clone()
    logits = decoder(gated.view(-1, LATENT_DIM)).view(num_samples, batch_size, DATA_DIM)
    log_p = (x * logits).sum(-1) - functional.softplus(logits).sum(-1)
    log_p = log_p - 0.5 * (gated**2).sum(-1) - 0.5 * LATENT_DIM * math.log(2 * math.pi)
    stopped_loc, stopped_scale = loc.detach(), scale.detach()
    standard = (z - stopped_loc) / stopped_scale
    log_q = -0.5 * (standard**2).sum(-1) - stopped_scale.log().sum(-1)
    log_q = log_q - 0.5 * LATENT_DIM * math.log(2 * math.pi)
    weights = (log_p - log_q).detach().softmax(dim=0)
    gated.register_hook(lambda gradient: gradient * weights.unsqueeze(-1))
    return -(weights * log_p - weights**2 * log_q).sum(0).mean()

  if kind == "compile":
    objective = torch.compile(objective)
  autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
  counter = iter(range(10**9))

  def run(steps: int) -> None:
    for _ in range(steps):
      start = next(counter) * batch_size % (len(x_all) - batch_size)
      noise = torch.randn(num_samples, batch_size, LATENT_DIM)
      optimizer.zero_grad(set_to_none=True)
      with autocast:
        loss = objective(x_all[start : start + batch_size], noise)
      loss.backward()
      optimizer.step()
    if device == "cuda":
      torch.cuda.synchronize()

  return run


def _mlp(size_in: int, size_out: int) -> torch.nn.Sequential:
  return torch.nn.Sequential(
    torch.nn.Linear(size_in, HIDDEN),
    torch.nn.Tanh(),
    torch.nn.Linear(HIDDEN, HIDDEN),
    torch.nn.Tanh(),
    torch.nn.Linear(HIDDEN, size_out),
  )
