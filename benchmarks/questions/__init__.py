"""Multiple-choice questions: prompts, asking, resampling."""
