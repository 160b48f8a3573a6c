"""Versioned scoring rules, one file each. A grader looks at one question and one answer and nothing else."""
