"""Readers for language models' sets in their public forms: E2E and Django (completions), OpenBookQA, FOLIO, LogiQA and
CLUTRR (a prompt and classes). The prompts have the layout of the paper's experiments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewise.errors import DataError
from tunewise.papers.reading import (
    DataParts,
    TextItem,
    find_files,
    label_of,
    parts_by_name,
    read_lines,
    read_table,
    text_of,
)
from tunewise.tasks.files import as_text

LETTERS = "ABCD"
_SLOT = re.compile(r"([^\[\],]+)\[([^\]]*)\]")
_DJANGO = {"train": (0, 16_000), "validation": (16_000, 17_000), "test": (17_000, 18_805)}
_FOLIO_LABELS = {"true": "True", "false": "False", "unknown": "Uncertain", "uncertain": "Uncertain"}


def _meaning(path: Path) -> Iterator[TextItem]:
    for row, where in read_table(path):
        slots = _SLOT.findall(text_of(row, ("mr", "meaning_representation"), where))
        if not slots:
            raise DataError(f"{where}: no slot[value] in the meaning representation")
        pairs = sorted((name.strip().lower(), value.strip()) for name, value in slots)
        prompt = "MR: " + " ; ".join(f"{name} = {value}" for name, value in pairs) + "\nTEXT:"
        references = row.get("references")
        if not isinstance(references, list) or not references:
            references = [text_of(row, ("ref", "human_reference", "target"), where)]
        for reference in references:
            yield TextItem(prompt, None, " " + as_text(reference, "references", where).strip(), where)


read_e2e = parts_by_name(_meaning)


def _task_prompt(text: str) -> str:
    return f'"""Task: {text.strip()}"""\n# Solution\n'


def read_raw_django(folder: Path) -> DataParts | None:
    """The authors' two files, line by line, in the usual split by lines: 16,000, 1,000 and 1,805."""
    texts, codes = find_files(folder, r"all\.anno(\.gz)?$"), find_files(folder, r"all\.code(\.gz)?$")
    if not texts or not codes:
        return None
    words, code = list(read_lines(texts[0])), list(read_lines(codes[0]))
    if len(words) != len(code) or len(words) <= _DJANGO["test"][0]:
        counts = f"{texts[0].name} has {len(words):,} lines and {codes[0].name} {len(code):,}"
        raise DataError(f"{counts}; 18,805 are expected in each")
    pairs = zip(words, code, strict=True)
    items = [TextItem(_task_prompt(text), None, line.strip(), where) for (text, where), (line, _) in pairs]
    return DataParts({part: items[first:last] for part, (first, last) in _DJANGO.items()})


def _snippets(path: Path) -> Iterator[TextItem]:
    for row, where in read_table(path):
        prompt = _task_prompt(text_of(row, ("nl", "question", "intent"), where))
        yield TextItem(prompt, None, text_of(row, ("code", "snippet"), where), where)


read_django = parts_by_name(_snippets)


def _lettered(answers: Sequence[str]) -> str:
    return "Options:\n" + "\n".join(f"{letter}) {a}" for letter, a in zip(LETTERS, answers, strict=True)) + "\nAnswer:"


def _unordered(question: str, answers: Iterable[str]) -> str:
    """Equal for one question with its answers in any order."""
    return json.dumps([question.strip(), *sorted(answer.strip() for answer in answers)])


def _openbook(path: Path) -> Iterator[TextItem]:
    for row, where in read_table(path):
        question = row.get("question")
        stem = row.get("question_stem") if question is None else question["stem"]
        choices = row.get("choices") if question is None else question["choices"]
        if isinstance(choices, Mapping):  # a hub's parquet has columns inside the cell
            choices = [{"text": t, "label": n} for t, n in zip(choices["text"], choices["label"], strict=True)]
        if not isinstance(choices, list) or len(choices) != len(LETTERS):
            raise DataError(f"{where}: four choices are expected")
        answers = {str(choice["label"]): str(choice["text"]) for choice in choices}
        prompt = f"Question: {str(stem).strip()}\n{_lettered([answers[letter] for letter in LETTERS])}"
        same = _unordered(str(stem), answers.values())
        yield TextItem(prompt, None, label_of(row, ("answerKey",), where), where, same)


read_openbookqa = parts_by_name(_openbook)


def read_folio(folder: Path) -> DataParts | None:
    """Either version. The class Unknown of one version is the class Uncertain of the other."""
    renamed = 0

    def read(path: Path) -> Iterator[TextItem]:
        nonlocal renamed
        for row, where in read_table(path):
            premises = row.get("premises")
            stated = "\n".join(map(str.strip, premises if isinstance(premises, list) else [str(premises)]))
            label = label_of(row, ("label",), where)
            if label is not None:
                if label.lower() not in _FOLIO_LABELS:
                    raise DataError(f"{where}: label {label!r}; True, False, Unknown or Uncertain is expected")
                renamed += label.lower() == "unknown"
                label = _FOLIO_LABELS[label.lower()]
            conclusion = text_of(row, ("conclusion",), where).strip()
            prompt = f"Premises:\n{stated}\n\nStatement:\n{conclusion}\n\nLabel (True/False/Uncertain):"
            yield TextItem(prompt, None, label, where)

    parts = parts_by_name(read)(folder)
    if parts is not None and renamed:
        parts.notes.append(f"{renamed:,} labels 'Unknown' are renamed to 'Uncertain', the same class.")
    return parts


def _logic_prompt(context: str, question: str, answers: Sequence[str]) -> str:
    return f"Context: {context.strip()}\nQuestion: {question.strip()}\n{_lettered(answers)}"


def _logiqa(path: Path) -> Iterator[TextItem]:
    """Version 2: a JSON object on each line, also in .txt files."""
    for line, where in read_lines(path):
        try:
            row: dict[str, Any] = json.loads(line)
            context, options = str(row.get("text", row.get("context"))), row["options"]
            prompt = _logic_prompt(context, str(row["question"]), options)
            same = _unordered(f"{context} {row['question']}", options)
            answer = row.get("answer", row.get("label"))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{where}: no question with four options ({type(error).__name__}: {error})") from None
        yield TextItem(prompt, None, answer if answer is None else _letter(answer, where), where, same)


_LOGIQA = {"train": r"(^|/)train", "validation": r"(^|/)(eval|dev|validation)", "test": r"(^|/)test"}
read_logiqa = parts_by_name(_logiqa, **{part: rf"{name}\.(txt|jsonl)(\.gz)?$" for part, name in _LOGIQA.items()})


def _letter(answer: Any, where: str) -> str:
    if isinstance(answer, int) and 0 <= answer < len(LETTERS):
        return LETTERS[answer]
    text = str(answer).strip().upper()
    if match := re.fullmatch(rf"([{''.join(LETTERS)}])(?:[.)].*)?", text, re.DOTALL):
        return match[1]
    raise DataError(f"{where}: the answer is {answer!r}; a letter from A to D or a number from 0 to 3 is expected")


def _kinship(path: Path) -> Iterator[TextItem]:
    for row, where in read_table(path):
        story, query = (text_of(row, (name,), where).strip() for name in ("story", "query"))
        label = label_of(row, ("target_text", "target"), where)
        yield TextItem(f"Story: {story}\nQuery: {query}\nAnswer:", None, label, where)


read_clutrr = parts_by_name(_kinship)
