"""The published mixtures: what part of the tokens seen came from each component, as the papers print it."""

from __future__ import annotations

PRESETS: dict[str, dict[str, float]] = {
    # 2005.14165, table 2.2: weight in the training mix, in per cent (they add up to 101, by rounding).
    "gpt-3": {"CommonCrawl": 60, "WebText2": 22, "Books1": 8, "Books2": 8, "Wikipedia": 3},
    # 2204.02311, table 2.
    "palm": {"SocialMedia": 50, "WebPages": 27, "Books": 13, "GitHub": 5, "Wikipedia": 4, "News": 1},
    # 2302.13971, table 1.
    "llama": {
        "CommonCrawl": 67.0,
        "C4": 15.0,
        "GitHub": 4.5,
        "Wikipedia": 4.5,
        "Books": 4.5,
        "ArXiv": 2.5,
        "StackExchange": 2.0,
    },
    # 2101.00027, table 1: weight, in which the epochs of each component (1 to 3) are contained.
    "the-pile": {
        "Pile-CC": 18.11,
        "PubMedCentral": 14.40,
        "Books3": 12.07,
        "OpenWebText2": 10.01,
        "ArXiv": 8.96,
        "GitHub": 7.59,
        "FreeLaw": 6.12,
        "StackExchange": 5.13,
        "USPTO": 3.65,
        "PubMedAbstracts": 3.07,
        "Gutenberg": 2.17,
        "OpenSubtitles": 1.55,
        "Wikipedia": 1.53,
        "DMMathematics": 1.24,
        "UbuntuIRC": 0.88,
        "BookCorpus2": 0.75,
        "EuroParl": 0.73,
        "HackerNews": 0.62,
        "YoutubeSubtitles": 0.60,
        "PhilPapers": 0.38,
        "NIHExPorter": 0.30,
        "EnronEmails": 0.14,
    },
}
"""Preset: {component: weight in per cent}. The names are the papers', without spaces."""
