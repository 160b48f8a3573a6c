"""From trained weights to graded answers: generation, tasks, graders, scoring."""
