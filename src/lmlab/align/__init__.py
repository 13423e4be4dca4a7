"""Alignment (survey, section 5.2): rule-based feedback, reward models, and learning from them by PPO."""
