"""Deduplication of data sets against each other (survey, 4.1.2): training text that repeats text we measure with.

What is measured with: the held-out documents of the corpus, and evaluation sets given as files or by a task's name.
Word n-grams as in GPT-3 (2005.14165, appendix C). Three passes: the n-grams of what is measured with (on disk and
memory-mapped, some 24 bytes each, and up to 16 in memory); where they occur in each part; and, with the common ones set
aside, which documents hold too much. The report names both sides: documents that went, and items that are not clean.
"""
