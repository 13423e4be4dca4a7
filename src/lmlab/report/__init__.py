"""What a run did, as numbers (`report.json`) and as one page (`report.html`), out of the files that its stages left.

`write_report(run_dir)` is the whole of it: `collect` (or `grid`) reads, `claims` judges, `figures` draws with `plots`,
`views` lays out, and `page` sets the page.
"""

from lmlab.report.stage import write_report

__all__ = ["write_report"]
