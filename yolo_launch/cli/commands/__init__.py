"""The commands, one file each: a body turns options into a request and hands on. Each has ``register(app)``."""
