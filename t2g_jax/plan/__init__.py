"""What a run would need: memory, time and traffic of every step function, before it is paid for."""
