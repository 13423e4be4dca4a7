"""Section 4.1 of the survey: the corpus. Sources are read, split, filtered, deduplicated, redacted and decontaminated.

A document is a row of an Arrow table; a step is a pure function from a table to the same table with more columns or
with decisions. Nothing vanishes: a dropped document keeps its row, with the step that dropped it and the reason.
"""
