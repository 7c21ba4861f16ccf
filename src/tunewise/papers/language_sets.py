"""The sets for language models in their public forms: E2E and Django (completions), OpenBookQA, FOLIO, LogiQA and
CLUTRR (a prompt, and classes to choose from).

The prompts have the layout of the paper's own experiments, so that lengths and scores can be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewise.errors import DataError
from tunewise.papers.reading import Item, Parts, by_name, find, label_of, lines, said, table
from tunewise.tasks.files import as_text

LETTERS = "ABCD"
_SLOT = re.compile(r"([^\[\],]+)\[([^\]]*)\]")
_DJANGO = {"train": (0, 16_000), "validation": (16_000, 17_000), "test": (17_000, 18_805)}


# --- completions ----------------------------------------------------------------------------------


def _meaning(path: Path) -> Iterator[Item]:
    for row, where in table(path):
        slots = _SLOT.findall(said(row, ("mr", "meaning_representation"), where))
        if not slots:
            raise DataError(f"{where}: no slot[value] in the meaning representation")
        pairs = sorted((name.strip().lower(), value.strip()) for name, value in slots)
        prompt = "MR: " + " ; ".join(f"{name} = {value}" for name, value in pairs) + "\nTEXT:"
        references = row.get("references")
        if not isinstance(references, list) or not references:
            references = [said(row, ("ref", "human_reference", "target"), where)]
        for reference in references:
            yield Item(prompt, None, " " + as_text(reference, "references", where).strip(), where)


e2e = by_name(_meaning)


def _task(text: str) -> str:
    return f'"""Task: {text.strip()}"""\n# Solution\n'


def django_raw(folder: Path) -> Parts | None:
    """The makers' two files, line by line, in the usual split by lines: 16,000, 1,000 and 1,805."""
    said_lines, code_lines = find(folder, r"all\.anno(\.gz)?$"), find(folder, r"all\.code(\.gz)?$")
    if not said_lines or not code_lines:
        return None
    words, code = list(lines(said_lines[0])), list(lines(code_lines[0]))
    if len(words) != len(code) or len(words) <= _DJANGO["test"][0]:
        raise DataError(f"{said_lines[0].name} has {len(words):,} lines and {code_lines[0].name} {len(code):,}; 18,805")
    items = [Item(_task(text), None, line.strip(), where) for (text, where), (line, _) in zip(words, code, strict=True)]
    return Parts({part: items[first:last] for part, (first, last) in _DJANGO.items()})


def _snippets(path: Path) -> Iterator[Item]:
    for row, where in table(path):
        yield Item(
            _task(said(row, ("nl", "question", "intent"), where)), None, said(row, ("code", "snippet"), where), where
        )


django = by_name(_snippets)


# --- a prompt and classes -------------------------------------------------------------------------


def _lettered(answers: Sequence[str]) -> str:
    return "Options:\n" + "\n".join(f"{letter}) {a}" for letter, a in zip(LETTERS, answers, strict=True)) + "\nAnswer:"


def _openbook(path: Path) -> Iterator[Item]:
    for row, where in table(path):
        question = row.get("question")
        stem = row.get("question_stem") if question is None else question["stem"]
        choices = row.get("choices") if question is None else question["choices"]
        if isinstance(choices, Mapping):  # a hub's parquet: columns inside the cell
            choices = [{"text": t, "label": n} for t, n in zip(choices["text"], choices["label"], strict=True)]
        if not isinstance(choices, list) or len(choices) != len(LETTERS):
            raise DataError(f"{where}: four choices are expected")
        answers = {str(one["label"]): str(one["text"]) for one in choices}
        prompt = f"Question: {str(stem).strip()}\n{_lettered([answers[letter] for letter in LETTERS])}"
        yield Item(prompt, None, label_of(row, ("answerKey",), where), where, _unordered(str(stem), answers.values()))


openbookqa = by_name(_openbook)

_VERDICTS = {"true": "True", "false": "False", "unknown": "Uncertain", "uncertain": "Uncertain"}


def folio(folder: Path) -> Parts | None:
    """Either version. One class goes by two names, Unknown and Uncertain: it is Uncertain here."""
    renamed = 0

    def read(path: Path) -> Iterator[Item]:
        nonlocal renamed
        for row, where in table(path):
            premises = row.get("premises")
            stated = "\n".join(map(str.strip, premises if isinstance(premises, list) else [str(premises)]))
            label = label_of(row, ("label",), where)
            if label is not None:
                if label.lower() not in _VERDICTS:
                    raise DataError(f"{where}: label {label!r}; True, False, Unknown or Uncertain is expected")
                renamed += label.lower() == "unknown"
                label = _VERDICTS[label.lower()]
            conclusion = said(row, ("conclusion",), where).strip()
            prompt = f"Premises:\n{stated}\n\nStatement:\n{conclusion}\n\nLabel (True/False/Uncertain):"
            yield Item(prompt, None, label, where)

    parts = by_name(read)(folder)
    if parts is not None and renamed:
        parts.notes.append(f"{renamed:,} labels 'Unknown' are called 'Uncertain', as the same class is elsewhere.")
    return parts


def _unordered(question: str, answers: Iterable[str]) -> str:
    """What is equal for one question with its answers in any order."""
    return json.dumps([question.strip(), *sorted(answer.strip() for answer in answers)])


def _logic(context: str, question: str, answers: Sequence[str]) -> str:
    return f"Context: {context.strip()}\nQuestion: {question.strip()}\n{_lettered(answers)}"


def _logiqa_two(path: Path) -> Iterator[Item]:
    """Version 2: an object a line, whatever the file's name ends in."""
    for line, where in lines(path):
        try:
            row: dict[str, Any] = json.loads(line)
            context, options = str(row.get("text", row.get("context"))), row["options"]
            prompt = _logic(context, str(row["question"]), options)
            same = _unordered(f"{context} {row['question']}", options)
            answer = row.get("answer", row.get("label"))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{where}: no question with four options ({type(error).__name__}: {error})") from None
        yield Item(prompt, None, answer if answer is None else _letter(answer, where), where, same)


def _logiqa_one(path: Path) -> Iterator[Item]:
    """Version 1: for each question a letter, the context, the question, and four answers that begin with theirs."""
    every = list(lines(path))
    for start in range(0, len(every), 7):
        block = [line.strip() for line, _ in every[start : start + 7]]
        where = every[start][1]
        if len(block) < 7 or not re.fullmatch(r"[a-dA-D]", block[0]):
            raise DataError(f"{where}: a letter from a to d is expected, then context, question and four answers")
        answers = [re.sub(r"^[A-D](?:[.)]\s*|\s+)", "", line) for line in block[3:]]
        same = _unordered(f"{block[1]} {block[2]}", answers)
        yield Item(_logic(block[1], block[2], answers), None, block[0].upper(), where, same)


def logiqa(folder: Path) -> Parts | None:
    """Either version: both are in .txt files, or json lines."""
    names = {"train": r"(^|/)train", "validation": r"(^|/)(eval|dev|validation)", "test": r"(^|/)test"}
    files = {part: rf"{name}(_en)?\.(txt|jsonl)(\.gz)?$" for part, name in names.items()}
    first = find(folder, files["train"])
    if not first:
        return None
    line, _ = next(lines(first[0]), ("", ""))
    return by_name(_logiqa_two if line.startswith("{") else _logiqa_one, **files)(folder)


def _letter(answer: Any, where: str) -> str:
    if isinstance(answer, int) and 0 <= answer < len(LETTERS):
        return LETTERS[answer]
    text = str(answer).strip().upper()
    if found := re.fullmatch(rf"([{''.join(LETTERS)}])(?:[.)].*)?", text, re.DOTALL):
        return found[1]
    raise DataError(f"{where}: the answer is {answer!r}; a letter from A to D or a number from 0 to 3 is expected")


def _kinship(path: Path) -> Iterator[Item]:
    for row, where in table(path):
        prompt = (
            f"Story: {said(row, ('story',), where).strip()}\nQuery: {said(row, ('query',), where).strip()}\nAnswer:"
        )
        yield Item(prompt, None, label_of(row, ("target_text", "target"), where), where)


clutrr = by_name(_kinship)
