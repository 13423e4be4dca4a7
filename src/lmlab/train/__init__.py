"""Section 4.3 of the survey: the one trainer, its optimizers, schedules, precision and checkpoints."""
