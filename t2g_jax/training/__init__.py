"""Train state, step, optimizer, mesh and sharding rules, checkpoints, metrics."""
