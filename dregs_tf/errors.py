"""What a run raises on purpose, each with a message for the user."""


class ConfigError(ValueError):
  """Says in one line which flag is wrong, what was given and what is allowed."""


class WorkerLost(ConnectionError):
  """Another worker of a distributed run is gone; says how to go on."""


class Interrupted(Exception):
  """A run that was asked to stop and has saved its state; says how to go on."""
