"""Section 4.2.3 of the survey: what turns tokens into a `Batch` and its loss terms.

An objective has `weights` (term -> weight), `count(batch)` (term -> n, without a forward pass), `inputs(batch)` (what the
network takes) and `loss(output, batch)` (term -> sum). The trainer minimises the sum over terms of
weight x (the term's sum) / (its count), both over the whole optimizer step: accumulation cannot change it.
"""
