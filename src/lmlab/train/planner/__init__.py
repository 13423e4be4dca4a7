"""What a run would need and take on hardware that is not here: memory by part, a layout, time. `lmlab plan`."""
