"""Section 3.2 of the survey: sources. Readers stream records from files; a broken record is set aside with its place.

`listing(source)` finds a source's files; `read(file, source, limits)` streams one file's records and rejects.
"""

from lmlab.corpus.readers.files import read
from lmlab.corpus.readers.listing import File, Listing, listing
from lmlab.corpus.readers.records import Limits, Record, Reject

__all__ = ["File", "Limits", "Listing", "Record", "Reject", "listing", "read"]
