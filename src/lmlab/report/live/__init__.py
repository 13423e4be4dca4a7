"""A page that follows a run while it trains (`lmlab watch`): read from the files that the run writes, no service needed."""
