"""Steps: pure functions from a table of documents to the same table with more columns or with decisions."""
