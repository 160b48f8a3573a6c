"""The built-in data: procedural medical-looking pictures whose truth is known, with questions, answers and pairs."""
