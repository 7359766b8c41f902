"""What a process needs of its machine: other processes, files, streams, signals, a watchdog."""
