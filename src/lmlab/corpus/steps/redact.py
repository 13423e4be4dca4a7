"""The step that redacts: what `lmlab.corpus.privacy` finds in a document is replaced, and counted by kind."""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa

from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.privacy.config import Redact
from lmlab.corpus.privacy.find import detectors, find
from lmlab.corpus.privacy.replace import replace
from lmlab.corpus.privacy.span import KINDS, Detector
from lmlab.corpus.steps.step import with_text

_GATES = {
    "emails": r"[A-Za-z0-9_+\-]@[A-Za-z0-9]|[ (\[]dot[ )\]]",
    "addresses": r"\d\.\d{1,3}\.\d{1,3}\.\d|[0-9A-Fa-f]{4}:[0-9A-Fa-f]{0,4}:",
    "keys": r"-----BEGIN|://[^\s/:@]{1,64}:|AKIA|ASIA|gh[pousr]_|_pat_|glpat-|xox[abprs]-|AIza|k_live_|k_test_|sk-|hf_|npm_"
    r"|pypi-|eyJ|(?i:key|secret|token|passw|passphrase)[A-Za-z0-9_]{0,20}[\"']?\s{0,4}[:=]\s{0,4}[\"'][^\s\"'<>{}()]{12}"
    r"|(?:KEY|SECRET|TOKEN|PASSWORD|PASSWD)[A-Z0-9_]{0,20}=[^\s\"'<>{}()$]{12}",
    "cards": r"\d(?:[ -]?\d){12}",
    "accounts": r"[A-Z]{2}\d{2} ?[A-Z0-9]{4} ?[A-Z0-9]{4}|(?i:routing|aba|rtn|transit)",
    "phones": r"[+(\d][\d().\-\x{2010}-\x{2013}/ \x{a0}]{5}",
    "handles": r"@[A-Za-z0-9_]{3}",
    "recogniser": r"[A-Z]",
}
"""What each kind needs somewhere in the text. RE2 decides it in linear time and without the interpreter's lock."""


class RedactStep:
    """Adds `redacted`, a struct of counts, one a kind of `KINDS`. With `replacement: random` doing it twice draws again."""

    name = "redact"

    def __init__(self, config: Redact) -> None:
        self.config = config
        self.identity = ["redact", 2, config.model_dump()]
        if config.enabled:
            self._chosen  # noqa: B018 - what is missing is refused before any document is read

    def __getstate__(self) -> dict[str, object]:
        return {"config": self.config, "identity": self.identity}

    @cached_property
    def _chosen(self) -> list[Detector]:
        return detectors(self.config)

    @cached_property
    def _gate(self) -> str:
        return "|".join(gate for name, gate in _GATES.items() if getattr(self.config, name))

    def __call__(self, table: pa.Table) -> pa.Table:
        counts = {kind: [0] * len(table) for kind in KINDS}
        text = table["text"]
        if self.config.enabled and self._gate:
            chosen = pc.and_(table["keep"], pc.match_substring_regex(text, self._gate)).to_pylist()
            new, ids = text.to_pylist(), table["id"].to_pylist()
            for row, wanted in enumerate(chosen):
                if wanted and (spans := find(new[row], self._chosen)):
                    new[row] = replace(
                        new[row], spans, self.config.replacement, seed=self.config.seed, document=ids[row]
                    )
                    for span in spans:
                        counts[span.kind][row] += 1
            table = with_text(table, pa.array(new, pa.string()))
        columns = [pa.array(column, pa.int32()) for column in counts.values()]
        return table.append_column("redacted", pa.StructArray.from_arrays(columns, names=list(counts)))
