"""More questions about the sample video: the right answers, and those given."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from metok_vllm.console import CommandError, out

# Asks one question, with METok or without; returns the answer's text.
Ask = Callable[[str, bool], str]


def show_answers(ask: Ask) -> None:
    """Ask all of the demo's questions and print them. Raises CommandError if a request fails."""
    import openai

    from metok_vllm.demo import QUESTIONS

    table = Table(title="More questions about the video", title_justify="left")
    for heading in ("question", "right", "dense", "METok"):
        table.add_column(heading)
    right = {False: 0, True: 0}
    try:
        for question, answer in QUESTIONS:
            said = {enabled: ask(question, enabled).strip() for enabled in right}
            for enabled, text in said.items():
                right[enabled] += text == answer
            table.add_row(question, answer, *(mark(said[e], answer) for e in (False, True)))
    except openai.OpenAIError as error:
        raise CommandError(f"a request failed: {error}") from error
    console = out()
    console.print(table)
    console.print(f"Right: {right[False]} dense, {right[True]} with METok, of {len(QUESTIONS)}.")


def mark(said: str, answer: str) -> str:
    """An answer for the table: a tick where it is right."""
    shown = "".join(c if c.isprintable() else " " for c in said).replace("[", r"\[")
    return "\u2713" if said == answer else f"\u2717 {shown}"
