"""Examples of the papers' data sets, by the forms of data/sets.yaml, and the five that columns alone do not describe.

The prompts have the layout of the paper's experiments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from tunewise.errors import DataError
from tunewise.papers.reading import (
    Cells,
    find_files,
    label_of,
    part_files,
    read_lines,
    read_rows,
    read_table,
    text_of,
)
from tunewise.papers.sets import Form
from tunewise.tasks.files import as_text

LETTERS = "ABCD"
_SLOT = re.compile(r"([^\[\],]+)\[([^\]]*)\]")
_COLUMN = re.compile(r"\{([^{}]+)\}")
_DJANGO = {"train": (0, 16_000), "validation": (16_000, 17_000), "test": (17_000, 18_805)}


@dataclass(frozen=True, slots=True)
class TextItem:
    """One example. `label` is None where it is not public; `where` names file and line.

    `same` is equal for items that differ only in form: a question with its answers in another order.
    """

    text: str
    pair: str | None
    label: str | None
    where: str
    same: str = ""


@dataclass(slots=True)
class DataParts:
    """The items of train, validation and test where they have files, and notes about changes."""

    items: dict[str, list[TextItem]]
    notes: list[str] = field(default_factory=list)


Parts = Mapping[str, Sequence[tuple[Cells, str]]]


def read_form(form: Form, folder: Path) -> DataParts | None:
    """Reads a folder; None where its files have another form."""
    parts: Parts = _SOURCES[form.source](form, folder)
    if "train" not in parts:
        return None
    make = _ITEMS.get(form.items, _item_of_columns)
    items = {part: [item for row, where in rows for item in make(form, row, where)] for part, rows in parts.items()}
    notes = [form.note] if form.note else []
    for old, new in form.rename.items():
        count = sum(label_of(row, form.label, where) == old for row, where in chain(*parts.values()))
        notes += [f"{count:,} labels {old!r} are renamed to {new!r}, the same class."] if count else []
    return DataParts(items, notes)


def _item_of_columns(form: Form, row: Cells, where: str) -> Iterator[TextItem]:
    if form.prompt:
        text = _COLUMN.sub(lambda match: text_of(row, match[1], where).strip(), form.prompt)
    else:
        text = text_of(row, form.text, where)
    pair = text_of(row, form.pair, where) if form.pair else None
    if form.lower:
        text, pair = text.lower(), pair and pair.lower()
    label = label_of(row, form.label, where)
    yield TextItem(text, pair, label if label is None else form.rename.get(label, label), where)


# --- rows of several files ------------------------------------------------------------------------


def _rows_by_part(form: Form, folder: Path) -> Parts:
    files = part_files(form, folder)
    return {part: [row for path in paths for row in read_rows(path, form)] for part, paths in files.items()}


def _mrpc(form: Form, folder: Path) -> Parts:
    """The authors' files. GLUE's validation part are the training pairs in `dev_ids.tsv`, where that file exists."""
    train, test = (find_files(folder, rf"msr_paraphrase_{part}\.txt") for part in ("train", "test"))
    if not train or not test:
        return {}
    ids = {tuple(line.split("\t")[:2]) for path in find_files(folder, r"dev_ids\.tsv") for line, _ in read_lines(path)}
    parts: dict[str, list[tuple[Cells, str]]] = {"train": [], "test": list(read_table(test[0]))}
    for row, where in read_table(train[0]):
        part = "validation" if (row["#1 ID"], row["#2 ID"]) in ids else "train"
        parts.setdefault(part, []).append((row, where))
    return parts


def _django(form: Form, folder: Path) -> Parts:
    """The authors' two files, line by line, in the usual split by lines: 16,000, 1,000 and 1,805."""
    texts, codes = find_files(folder, r"all\.anno"), find_files(folder, r"all\.code")
    if not texts or not codes:
        return {}
    words, code = list(read_lines(texts[0])), list(read_lines(codes[0]))
    if len(words) != len(code) or len(words) <= _DJANGO["test"][0]:
        counts = f"{texts[0].name} has {len(words):,} lines and {codes[0].name} {len(code):,}"
        raise DataError(f"{counts}; 18,805 are expected in each")
    rows = [({"text": text, "code": line}, where) for (text, where), (line, _) in zip(words, code, strict=True)]
    return {part: rows[first:last] for part, (first, last) in _DJANGO.items()}


# --- examples that are more than columns ----------------------------------------------------------


def _e2e(form: Form, row: Cells, where: str) -> Iterator[TextItem]:
    slots = _SLOT.findall(text_of(row, "mr|meaning_representation", where))
    if not slots:
        raise DataError(f"{where}: no slot[value] in the meaning representation")
    pairs = sorted((name.strip().lower(), value.strip()) for name, value in slots)
    prompt = "MR: " + " ; ".join(f"{name} = {value}" for name, value in pairs) + "\nTEXT:"
    references = row.get("references")
    if not isinstance(references, list) or not references:
        references = [text_of(row, "ref|human_reference|target", where)]
    for reference in references:
        yield TextItem(prompt, None, " " + as_text(reference, "references", where).strip(), where)


def _openbookqa(form: Form, row: Cells, where: str) -> Iterator[TextItem]:
    nested = row.get("question")
    question = (
        nested if isinstance(nested, Mapping) else {"stem": row.get("question_stem"), "choices": row.get("choices")}
    )
    stem, choices = str(question["stem"]), question["choices"]
    if isinstance(choices, Mapping):  # a hub's parquet has columns inside the cell
        choices = [{"text": t, "label": n} for t, n in zip(choices["text"], choices["label"], strict=True)]
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        raise DataError(f"{where}: four choices are expected")
    answers = {str(choice["label"]): str(choice["text"]) for choice in choices}
    ordered = [answers[letter] for letter in LETTERS]
    yield _choice(f"Question: {stem.strip()}", stem, ordered, label_of(row, "answerKey", where), where)


def _logiqa(form: Form, row: Cells, where: str) -> Iterator[TextItem]:
    """Version 2: a JSON object on each line, also in .txt files."""
    try:
        content = json.loads(str(row["0"]))
        context, question = str(content.get("text", content.get("context"))), str(content["question"])
        prompt = f"Context: {context.strip()}\nQuestion: {question.strip()}"
        answer = content.get("answer", content.get("label"))
        item = _choice(prompt, f"{context} {question}", content["options"], answer, where)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: no question with four options ({type(error).__name__}: {error})") from None
    yield item


def _choice(prompt: str, question: str, answers: Sequence[str], answer: object, where: str) -> TextItem:
    options = "\n".join(f"{letter}) {text}" for letter, text in zip(LETTERS, answers, strict=True))
    same = json.dumps([question.strip(), *sorted(text.strip() for text in answers)])
    label = None if answer is None else _letter(answer, where)
    return TextItem(f"{prompt}\nOptions:\n{options}\nAnswer:", None, label, where, same)


def _letter(answer: object, where: str) -> str:
    if isinstance(answer, int) and 0 <= answer < len(LETTERS):
        return LETTERS[answer]
    if match := re.fullmatch(rf"([{LETTERS}])(?:[.)].*)?", str(answer).strip().upper(), re.DOTALL):
        return match[1]
    raise DataError(f"{where}: the answer is {answer!r}; a letter from A to D or a number from 0 to 3 is expected")


_SOURCES: dict[str, Callable[[Form, Path], Parts]] = {"": _rows_by_part, "mrpc": _mrpc, "django": _django}
_ITEMS = {"e2e": _e2e, "openbookqa": _openbookqa, "logiqa": _logiqa}
