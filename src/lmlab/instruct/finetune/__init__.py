"""Fine-tuning for one task with a head of its own and the language model's loss beside it (Radford et al. 2018)."""
