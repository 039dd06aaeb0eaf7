"""Labelled texts and conversations, from JSON lines or CSV files."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError


class DatasetError(ValueError):
    """Data that can't be read: file:line, what was found, what is allowed. Never quotes a text."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Example:
    """One text or conversation. Its texts never show in a repr, so they can't slip into a log."""

    id: str
    messages: tuple[Message, ...] = ()  # empty: `text` is read as it stands, without a chat template
    text: str = field(default="", repr=False)
    reply: str | None = field(default=None, repr=False)  # what the assistant said; it is the response phase
    label: int | None = None  # 1 if it is what the monitor looks for, 0 if not, None if unknown
    group: str = ""  # examples of one group never stand on both sides of a split
    dataset: str = ""  # where it comes from, for leave-one-dataset-out
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> tuple[tuple[Message, ...], str, str | None]:
        """What was said; two examples with the same are the same to a monitor."""
        return self.messages, self.text, self.reply

    @property
    def plain_text(self) -> str:
        """All its words, for baselines that read text."""
        turns = [message.content for message in self.messages] if self.messages else [self.text]
        return "\n".join(turns if self.reply is None else [*turns, self.reply])


@dataclass(frozen=True, slots=True)
class Columns:
    """Which fields of a file mean what. The defaults are the project's own format."""

    text: str = "text"
    label: str = "label"
    group: str = "group"
    positive: tuple[str, ...] = ("1", "true")  # the label's values that mean 1; all others mean 0


class _MessageLine(BaseModel):
    model_config = ConfigDict(frozen=True)
    role: str
    content: str


class _Line(BaseModel):
    """One JSON line; fields of other names are ignored, so that data sets of others can be read as they are."""

    model_config = ConfigDict(frozen=True)
    id: StrictStr | StrictInt | None = None
    messages: tuple[_MessageLine, ...] = ()
    reply: StrictStr | None = None
    dataset: StrictStr = ""
    tags: dict[str, StrictStr | StrictInt | StrictBool | float | None] = Field(default_factory=dict)


def read_dataset(paths: Sequence[Path], columns: Columns | None = None) -> tuple[Example, ...]:
    """Read .jsonl and .csv files. Without a group an example is its own group; without a dataset, its file's name.

    Raises DatasetError, and OSError for a file that can't be opened.
    """
    columns = columns or Columns()
    examples = [example for path in paths for example in _read_file(path, columns)]
    if not examples:
        raise DatasetError(f"{', '.join(map(str, paths))}: no examples")
    return tuple(examples)


def dataset_digest(examples: Iterable[Example]) -> str:
    """sha256 (hex) over texts, labels and groups, in order."""
    digest = hashlib.sha256()
    for e in examples:
        turns = [(m.role, m.content) for m in e.messages]
        digest.update(json.dumps([turns, e.text, e.reply, e.label, e.group, e.dataset]).encode())
    return digest.hexdigest()


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file. Raises DatasetError, and OSError if it can't be opened."""
    with _as_text(path):
        return tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))


def _read_file(path: Path, columns: Columns) -> Iterator[Example]:
    with _as_text(path):
        match path.suffix:
            case ".jsonl":
                yield from _read_json_lines(path, columns)
            case ".csv":
                yield from _read_csv(path, columns)
            case _:
                raise DatasetError(f"{path}: can't tell its format; give a .jsonl or a .csv file")


@contextmanager
def _as_text(path: Path) -> Iterator[None]:
    """Say which file can't be decoded; the errors of codecs and of csv don't, and quote it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise DatasetError(f"{path}: not CSV: {error}; save it as CSV, or as .jsonl") from error


def _read_json_lines(path: Path, columns: Columns) -> Iterator[Example]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}:{number}"
                try:
                    raw = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DatasetError(f"{where}: not JSON: {error.msg}") from error
                if not isinstance(raw, dict):
                    raise DatasetError(f"{where}: needs an object with 'messages' or {columns.text!r}")
                yield _example(raw, columns, where, f"{path.stem}:{number}", path.stem)


def _read_csv(path: Path, columns: Columns) -> Iterator[Example]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if columns.text not in row:
                known = ", ".join(map(str, row))
                raise DatasetError(f"{where}: no column {columns.text!r}; the file has {known}")
            yield _example(row, columns, where, f"{path.stem}:{rows.line_num}", path.stem)


def _example(raw: Mapping[str, object], columns: Columns, where: str, name: str, dataset: str) -> Example:
    try:
        line = _Line.model_validate(
            {key: raw[key] for key in ("id", "messages", "reply", "dataset", "tags") if key in raw}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise DatasetError(f"{where}: {place}: {problem['msg']}") from error
    text = raw.get(columns.text, "")
    if not isinstance(text, str) or not (text or line.messages):
        raise DatasetError(
            f"{where}: needs 'messages' (a list of role and content) or a text in {columns.text!r}"
        )
    messages, reply = _turns(line, where)
    group = raw.get(columns.group)
    identity = name if line.id is None else str(line.id)
    return Example(
        id=identity,
        messages=messages,
        text="" if messages else text,
        reply=reply,
        label=_label(raw.get(columns.label), columns.positive),
        group=identity if group in (None, "") else str(group),
        dataset=line.dataset or dataset,
        tags={key: str(value) for key, value in line.tags.items()},
    )


def _turns(line: _Line, where: str) -> tuple[tuple[Message, ...], str | None]:
    """The prompt and the reply. An assistant's message at the end is the reply: the server would have written it."""
    messages = tuple(Message(m.role, m.content) for m in line.messages)
    if len(messages) < 2 or messages[-1].role != "assistant":  # noqa: PLR2004  there is something it replies to
        return messages, line.reply
    if line.reply is not None:
        raise DatasetError(
            f"{where}: 'messages' end with the assistant's, and there is a 'reply', too; give the last turn once"
        )
    return messages[:-1], messages[-1].content


def _label(value: object, positive: tuple[str, ...]) -> int | None:
    if value is None or value == "":
        return None
    return int(str(value).strip().lower() in {p.lower() for p in positive})
