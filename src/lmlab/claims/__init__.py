"""The survey's claims as controlled experiments: one small file each (survey/), a verdict by one rule (verdict.py)."""
