"""Evaluation (survey, section 7): task x strategy x model -> items with their answers -> scores with their intervals.

task      data (items, and others to show as demonstrations) + view (how a question is put) + answer rule + metric
strategy  demonstrations, a chain of steps, a vote of samples: composed over any task, no task knows of them
runner    one unit = one model on one task with one strategy; what is finished is not done again
compare   two runs, paired item by item
"""
