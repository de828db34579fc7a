"""Defines the exceptions that a run raises on purpose, with messages for the user."""


class ConfigError(ValueError):
  """Says in one line which flag is wrong, which value was given and what is allowed."""


class WorkerLost(ConnectionError):
  """Says that another worker of a distributed run is gone, and how to resume."""


class Interrupted(Exception):
  """Says that a run was asked to stop and has saved its state, and how to resume."""
