"""What the tokenizers and the text tower read: every sentence that event-QA can say."""

from __future__ import annotations

from metok_vllm.benchmarks.eventqa.world import COLOURS, COUNTS, SHAPES

REPEATS = 20  # so that byte-pair merging makes one token of each word before it looks elsewhere


def sentences() -> list[str]:
    """Questions and answers; all words of event-QA in every place where they can stand."""
    lines = ["List the scenes in order.", "Which scene is first?", "Which scene is last?"]
    lines += ["yes", "no", *COUNTS, *(f"the {count}" for count in COUNTS)]
    for colour in COLOURS:
        lines += [
            colour,
            f"What is in the {colour} scene?",
            f"What colour is the dot in the {colour} scene?",
            f"How many shapes are in the {colour} scene?",
            f"Which scene comes after the {colour} scene?",
            f"Which scene comes before the {colour} scene?",
        ]
        for shape in SHAPES:
            lines += [
                f"{colour} {shape}",
                f"Which scene shows a {colour} {shape}?",
                f"Is there a {colour} {shape}?",
            ]
    return lines * REPEATS
