"""Corrupted pictures: what is shown instead of an example's own picture where a loss asks for a worse one."""
