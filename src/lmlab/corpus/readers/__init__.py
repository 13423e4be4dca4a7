"""Section 3.2 of the survey: sources. Readers stream records from files; a broken record is set aside with its place.

`listing(source)` finds a source's files; `read(file, source, limits)` streams one file's records, rejects, and what is
passed over because it is no document. `formats.py` says which reader a file's name asks for; one module a format.
"""

from lmlab.corpus.readers import hub
from lmlab.corpus.readers.dispatch import link_files, read, units
from lmlab.corpus.readers.listing import File, Listing, listing
from lmlab.corpus.readers.records import Limits, Passed, Record, Reject

__all__ = ["File", "Limits", "Listing", "Passed", "Record", "Reject", "hub", "link_files", "listing", "read", "units"]
