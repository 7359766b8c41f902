"""The phases of a run. Each reads artifacts of a work directory and writes its own; each can be
stopped and started again with the same command."""
