"""YAML text -> a plain tree of JSON values in which every key and value knows its line and column.

PyYAML's own constructors are not used: they lose the places, keep the last of two equal keys, read `yes` as true,
`010` as 8 and `3e-4` as text. This reads scalars by the YAML 1.2 core rules, and refuses what no job file needs and
what makes readers disagree: anchors, aliases, tags, merge keys, duplicate keys, several documents, endless nesting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar, Protocol, TypeAlias

import yaml

from orchestrator.spec.errors import Problem, SpecError, dotted, quoted

TEXT_BYTES_MAX = 1 << 20
DEPTH_MAX = 32
NUMBER_CHARS_MAX = 100

Path: TypeAlias = tuple[str | int, ...]
Tree: TypeAlias = bool | int | float | str | list["Tree"] | dict[str, "Tree"] | None

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_OLD_BOOL = re.compile(r"yes|no|on|off", re.IGNORECASE)
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_HINTS = (  # part of PyYAML's message -> what to do about it
    ("'\\t'", "indent with spaces; YAML does not allow tabs there"),
    ("mapping values are not allowed", 'check the indentation, and quote text that holds ": "'),
    ("could not find expected ':'", 'write "key: value", with a space after the colon'),
    ("block end", "align this line with the other keys of its section"),
    ("flow mapping", "close the { with a }, and put commas between the entries"),
    ("flow sequence", "close the [ with a ], and put commas between the entries"),
    ("end of stream", "close the quote"),
    ("cannot start any token", "quote the text"),
)


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the text, both counted from 1."""

    line: int
    column: int


_NO_PLACE = Position(0, 0)


@dataclass(slots=True)
class Document:
    """The tree, where its keys and values stand, and what the reading itself found wrong."""

    file: str
    root: dict[str, Tree] = field(default_factory=dict)
    key_at: dict[Path, Position] = field(default_factory=dict)
    value_at: dict[Path, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[Path] = field(default_factory=set)  # paths whose value is already complained about
    hidden: frozenset[Path] = frozenset()  # known keys that the file must not hold
    above: Path = ()  # where `root` hangs, when it is a part of what was read
    nowhere: Position = Position(1, 1)  # the place of what stands nowhere

    def position(self, path: Path, *, of_key: bool) -> Position:
        """Where `path` stands, or the nearest section above it that is written."""
        first, second = (self.key_at, self.value_at) if of_key else (self.value_at, self.key_at)
        for length in range(len(path), 0, -1):
            found = first.get(path[:length]) or second.get(path[:length])
            if found is not None:
                return found
        return self.nowhere

    def written(self, path: Path) -> bool:
        """True where the file itself holds a value at `path`."""
        return path in self.value_at

    def shown(self, path: Path) -> str:
        """`path` as a message names it: from the top of the file, also where this is only a part of it."""
        return dotted((*self.above, *path))

    def complain(self, path: Path, at: Position, message: str, *, fix: str = "") -> None:
        """Note a problem found while reading, without stopping."""
        where = self.shown(path)
        self.problems.append(Problem(file=self.file, line=at.line, column=at.column, path=where, message=message, fix=fix))

    def below(self, key: str) -> Document:
        """The mapping at `key` as a document of its own, which still tells places and paths of the whole."""

        def inside(places: dict[Path, Position]) -> dict[Path, Position]:
            return {path[1:]: at for path, at in places.items() if path[:1] == (key,)}

        root = self.root[key]
        assert isinstance(root, dict), "only a mapping can stand for itself"
        return Document(
            file=self.file,
            root=root,
            key_at=inside(self.key_at),
            value_at=inside(self.value_at),
            broken={path[1:] for path in self.broken if path[:1] == (key,)},
            above=(*self.above, key),
            nowhere=self.position((key,), of_key=True),
        )


def read(text: str, *, file: str) -> Document:
    """Read one YAML mapping. Raises SpecError where the text is none; softer problems are left in `.problems`."""
    if len(text.encode("utf-8", "surrogatepass")) > TEXT_BYTES_MAX:
        raise refusal(file, "the text is too large", fix=f"keep a job file under {TEXT_BYTES_MAX} bytes")
    node = _compose(text, file)
    if node is None or (isinstance(node, yaml.ScalarNode) and node.style is None and _NULL.fullmatch(node.value)):
        raise refusal(file, "the file is empty", at=Position(1, 1), fix='write at least "name: my-job"')
    at = _position(node.start_mark)
    if not isinstance(node, yaml.MappingNode):
        what = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise refusal(file, f"the file must hold a mapping, not {what}", at=at, fix='start with "name: my-job"')
    document = Document(file)
    document.value_at[()] = at
    document.root = _mapping(node, (), document)
    return document


def of_tree(root: dict[str, Tree], *, file: str) -> Document:
    """A document of a tree that was never text, such as an object of the API server: everything stands at line 0."""
    document = Document(file, root=root, nowhere=_NO_PLACE)
    _place(root, (), document)
    return document


def _place(node: Tree, path: Path, document: Document) -> None:
    document.key_at[path] = document.value_at[path] = _NO_PLACE
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for part, child in children:
        _place(child, (*path, part), document)


def refusal(file: str, message: str, *, at: Position | None = None, fix: str = "") -> SpecError:
    """A SpecError with one problem of the file as a whole, or of one place in it."""
    line, column = (at.line, at.column) if at else (0, 0)
    return SpecError([Problem(file=file, line=line, column=column, path="", message=message, fix=fix)])


class _Mark(Protocol):  # PyYAML has two unrelated classes of it
    line: int
    column: int


class _Refused(Exception):
    def __init__(self, message: str, *, at: Position, fix: str) -> None:
        super().__init__(message)
        self.at, self.fix = at, fix


class _Loader(yaml.SafeLoader):
    """Composes nodes only: scalars keep their text, and the dangerous parts of YAML are refused, not followed."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]
    depth = 0

    def peeked(self) -> yaml.Event:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        return event

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peeked()
        at = _position(event.start_mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Refused("anchors (&) and aliases (*) are not allowed", at=at, fix="write the value out, or quote the text")
        if getattr(event, "tag", None) is not None:
            raise _Refused("tags (!) are not allowed", at=at, fix="remove the tag, or quote the text")
        if self.depth >= DEPTH_MAX:
            raise _Refused("nested too deeply", at=at, fix=f"keep it within {DEPTH_MAX} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, file: str) -> yaml.Node | None:
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        if not loader.check_node():
            return None
        node: yaml.Node | None = loader.get_node()
        if loader.check_node():
            at = _position(loader.peeked().start_mark)
            raise _Refused("a second document starts here", at=at, fix='keep one job in a file; remove the "---"')
        return node
    except _Refused as refused:
        raise refusal(file, str(refused), at=refused.at, fix=refused.fix) from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(file, error) from None
    except yaml.reader.ReaderError as error:
        at = _position_of_index(text, error.position)
        message = f"the character U+{int(error.character):04X} is not allowed in YAML"
        raise refusal(file, message, at=at, fix="remove it") from None
    except (ValueError, OverflowError):  # PyYAML lets these out, e.g. for the escape "\UFFFFFFFF"
        where = _position(loader.get_mark()) if loader else None
        message = "not valid YAML: an escape or a directive holds a number out of range"
        raise refusal(file, message, at=where, fix="write the character itself") from None
    finally:
        if loader is not None:
            loader.dispose()


def _syntax_error(file: str, error: yaml.MarkedYAMLError) -> SpecError:
    mark = error.problem_mark or error.context_mark
    said = ", ".join(part for part in (error.context, error.problem) if part)
    fix = next((hint for part, hint in _HINTS if part in said), "")
    return refusal(file, f"not valid YAML: {said}", at=_position(mark) if mark else None, fix=fix)


def _position(mark: _Mark | None) -> Position:
    assert mark is not None, "the pure Python loader marks everything"
    return Position(mark.line + 1, mark.column + 1)


def _position_of_index(text: str, index: int) -> Position:
    before = text[:index]
    return Position(before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1)


def _mapping(node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Tree]:
    result: dict[str, Tree] = {}
    for key_node, value_node in node.value:
        at = _position(key_node.start_mark)
        key = _key(key_node)
        if key is None:
            document.complain(path, at, "a key must be text", fix="quote the key")
            continue
        here = (*path, key)
        if key in result:
            first = document.key_at[here]
            document.complain(here, at, f"written twice; the first is at line {first.line}", fix="remove one of the two")
            continue
        document.key_at[here] = at
        document.value_at[here] = _position(value_node.start_mark)
        result[key] = _tree(value_node, here, document)
    return result


def _key(node: yaml.Node) -> str | None:
    if not isinstance(node, yaml.ScalarNode) or not _encodable(node.value):
        return None
    text: str = node.value
    if node.style is None and any(form.fullmatch(text) for form in (_NULL, _BOOL, _INT, _FLOAT, _NOT_FINITE)):
        return None
    return text


def _tree(node: yaml.Node, path: Path, document: Document) -> Tree:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        items: list[Tree] = []
        for index, child in enumerate(node.value):
            document.value_at[(*path, index)] = _position(child.start_mark)
            items.append(_tree(child, (*path, index), document))
        return items
    return _scalar(node, path, document)


def _scalar(node: yaml.Node, path: Path, document: Document) -> Tree:
    text: str = node.value
    plain = node.style is None  # type: ignore[attr-defined]
    at = _position(node.start_mark)

    def broken(message: str, fix: str) -> None:
        document.complain(path, at, message, fix=fix)
        document.broken.add(path)

    if not _encodable(text):
        broken("holds half of a surrogate pair, which is no character", "write the character itself")
    elif not plain:
        return text
    elif _NULL.fullmatch(text):
        if not _may_be_null(path):
            at = document.position(path, of_key=True)
            broken("has no value", "write a value, or remove the key to take the default")
    elif _BOOL.fullmatch(text):
        return text.lower() == "true"
    elif _OLD_BOOL.fullmatch(text):
        broken(
            f"{text} is a truth value to some YAML readers and text to others",
            f'write true or false, or "{text}" in quotes',
        )
    elif _NOT_FINITE.fullmatch(text):
        broken(f"must be a finite number, not {text}", "write a number")
    elif _INT.fullmatch(text) or _FLOAT.fullmatch(text):
        if len(text) > NUMBER_CHARS_MAX:
            broken(f"a number of {len(text)} characters is too long", f"keep numbers within {NUMBER_CHARS_MAX} characters")
            return None
        number = _number(text)
        if isfinite(number):
            return number
        broken(f"the number {quoted(text)[1:-1]} is too large", "write a smaller number")
    else:
        return text
    return None


def _may_be_null(path: Path) -> bool:
    """Options of a task may be null, and so may what Kubernetes itself wrote into an object."""
    inner = path[1:] if path[:1] == ("spec",) else path
    return (inner[:2] == ("task", "options") and len(inner) > 2) or (path[:1] in (("metadata",), ("status",)) and len(path) > 1)


def _number(text: str) -> int | float:
    if not _INT.fullmatch(text):
        return float(text)
    return int(text, 16 if text.startswith("0x") else 8 if text.startswith("0o") else 10)


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
