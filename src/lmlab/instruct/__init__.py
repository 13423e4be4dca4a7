"""Instruction tuning (survey, section 5.1): task families with verifiable answers, formatting, mixing, training."""
