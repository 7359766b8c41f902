"""Puzzles of reasoning-gym, each with the program that judges it."""
