"""What the text tower reads of a class: its name in one of several styles, in a template, or texts of the user's."""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeGuard, TypeVar

from zar_ray.data.classes import name_key
from zar_ray.data.options import NameStyle, PromptOptions, TextAverage
from zar_ray.data.text_files import csv_rows, read_text
from zar_ray.errors import ConfigError, ManifestError, suggestion
from zar_ray.options.layers import conf_dir
from zar_ray.options.places import AnyFile, at_home, file_of, from_home
from zar_ray.untrusted import parse_json

_Options = TypeVar("_Options", bound=PromptOptions)

_SHOWN_NAMES = 5  # that a message lists
_WHOLE = "{}"  # the template of a text that stands for itself


@dataclass(frozen=True)
class ContextFile:
    """The file of a learned context as it was when a run was put together; no other node needs to have it.

    Its bytes are what `zar_ray.models.learned_context` reads; the path is for messages.
    """

    path: str
    content: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """12 hexadecimal digits of a hash of the content."""
        return hashlib.sha256(self.content).hexdigest()[:12]


@dataclass(frozen=True)
class ClassPrompts:
    """What `zar_ray.models.text.PromptedClasses` is made from, besides the model.

    The context is the words in front of a name, which tuning starts from, or a learned context in their place; None for
    the model's own words.
    """

    names: tuple[str, ...]  # the K names as prompts spell them
    context: str | ContextFile | None
    texts: tuple[tuple[str, ...], ...] | None = None  # for each class its prompts; None: the one ``CONTEXT NAME.``
    average: TextAverage = "features"  # what counts of several

    @property
    def identity(self) -> list[object]:
        """What results depend on, as JSON values; of a learned context that is its content, wherever it lies."""
        context = {"learned": self.context.digest} if isinstance(self.context, ContextFile) else self.context
        return [self.names, context, self.texts, self.average]


def is_context_file(context: str | None) -> TypeGuard[str]:
    """Whether the option `context` names a learned context's file rather than words."""
    return context is not None and context.endswith(".safetensors")


def read_context_file(path: str | Path) -> ContextFile:
    """Takes in the file of a learned context; what it holds is looked at where the model is.

    Raises:
        ConfigError: It cannot be read.
    """
    file = at_home(file_of(path))
    try:
        return ContextFile(str(file), file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"--context {file}: cannot be read ({error.strerror or error}); give a learned context's file, or words"
        ) from error


def prompts_of(class_sets: Sequence[Sequence[str]], options: PromptOptions) -> tuple[ClassPrompts, ...]:
    """What a run's options make of its class sets; every file that they name is read once, for all of them.

    Raises:
        ConfigError: The template or a file cannot be used, or a template is given with a context of its own.
    """
    if options.template is not None and options.context is not None:
        raise ConfigError("--template and --context: a template's words are the context; give one of them")
    every = tuple(dict.fromkeys(name for names in class_sets for name in names))
    texts = read_class_texts(options.class_texts, every) if options.class_texts is not None else None
    context = read_context_file(options.context) if is_context_file(options.context) else options.context
    every_set = (
        class_prompts(names, context, style=options.name_style, template=options.template, class_texts=texts)
        for names in class_sets
    )
    return tuple(replace(prompts, average=options.template_average) for prompts in every_set)


def with_words(
    options: _Options, prompts: Sequence[ClassPrompts], words: str | None
) -> tuple[_Options, tuple[ClassPrompts, ...]]:
    """Options and what `prompts_of` makes of them, a model's own words written down where neither names any.

    The words are those of `zar_ray.models.text.default_words`, None where the model takes none.
    """
    if words is None or options.context is not None or options.template is not None:
        return options, tuple(prompts)
    named = (one if one.context is not None else replace(one, context=words) for one in prompts)
    return options.model_copy(update={"context": words}), tuple(named)


def class_prompts(
    class_names: Sequence[str],
    context: str | ContextFile | None,
    *,
    style: NameStyle = "raw",
    template: str | None = None,
    class_texts: Mapping[str, Sequence[str]] | None = None,
) -> ClassPrompts:
    """Puts class names, or the user's texts in their place, into templates.

    Args:
        class_names: The K names, as results show them.
        context: The words in front of a name where no template says others, or a learned context; None: the model's.
        style: How prompts spell the names; the user's texts stay as they are.
        template: What `load_templates` takes; by default ``CONTEXT {}.``, and texts of the user's stand for themselves.
        class_texts: Texts of each class, see `read_class_texts`. Each takes the name's place in each template.

    Raises:
        ConfigError: The template cannot be used.
    """
    names = tuple(styled(name, style) for name in class_names)
    if template is None and class_texts is None:
        return ClassPrompts(names, context)
    templates = (_WHOLE,) if template is None else load_templates(template)
    fillings = [(name,) for name in names] if class_texts is None else [class_texts[name] for name in class_names]
    texts = tuple(tuple(one.replace("{}", part) for one in templates for part in parts) for parts in fillings)
    in_front = templates[0].partition("{}")[0].strip() if len(templates) == 1 else ""
    return ClassPrompts(names, in_front or context, texts)


def styled(name: str, style: NameStyle) -> str:
    """A class name as a prompt spells it.

    ``raw``: underscores become spaces, nothing else. ``split_camel_case``: so do the joints of a name without spaces,
    ``ApplyEyeMakeup`` becomes ``Apply Eye Makeup``. ``lower_case``: split, and in lower case.
    """
    spaced = name.replace("_", " ")
    if style == "raw":
        return spaced
    if len(spaced.split()) < 2:
        spaced = "".join(f" {c}" if _starts_word(spaced, i) else c for i, c in enumerate(spaced))
    return spaced.lower() if style == "lower_case" else spaced


@functools.cache
def load_templates(name_or_template: str) -> tuple[str, ...]:
    """One template, with ``{}`` where the class name goes, or a shipped list of them by name (``conf/templates``).

    Raises:
        ConfigError: The text does not hold exactly one ``{}``, or there is no such list.
    """
    if "{" in name_or_template or "}" in name_or_template:
        return (_checked(name_or_template, f'template "{name_or_template}"'),)
    folder = conf_dir() / "templates"
    known = sorted(path.stem for path in folder.glob("*.txt"))
    if name_or_template not in known:
        near = suggestion(name_or_template, known)
        raise ConfigError(
            f'no template list "{name_or_template}", and a template has {{}} where the class name goes{near}'
        )
    place = folder / f"{name_or_template}.txt"
    lines = place.read_text(encoding="utf-8").splitlines()
    return tuple(_checked(line, f"{place}, line {number}") for number, line in enumerate(lines, 1))


def read_class_texts(path: str | Path, class_names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Reads texts for classes: descriptions, or other names.

    The file is a CSV with the columns ``class`` and ``text``, a row a text, or JSON,
    ``{"class": "text", "other class": ["text", "text"]}``; UTF-8 both. Classes may be spelled without the case,
    spaces and punctuation of `class_names`.

    Args:
        path: The file, .csv or .json.
        class_names: All classes that need a text.

    Returns:
        For each of `class_names`, in their order, its texts in the file's order, at least one.

    Raises:
        ConfigError: The file cannot be read; a class is unknown or has no text; or a text is empty or occurs twice in
            its class. The message names the place.
    """
    file = from_home(file_of(path))
    try:
        rows = [(at, _one_line(label), _one_line(text)) for at, label, text in _rows(file)]
    except ManifestError as error:
        raise ConfigError(str(error)) from error
    known = {unicodedata.normalize("NFC", name): name for name in class_names}
    keys = Counter(map(name_key, class_names))
    alike = {name_key(name): name for name in class_names if name_key(name) and keys[name_key(name)] == 1}
    found: dict[str, list[str]] = {name: [] for name in class_names}
    for at, label, text in rows:
        name = known.get(unicodedata.normalize("NFC", label)) or alike.get(name_key(label))
        if name is None:
            near = suggestion(label, class_names)
            way_out = near if "did you mean" in near else "; take it out, or spell it as the dataset does"
            raise ConfigError(f'{at}: no class is named "{label}"{way_out}')
        if not text:
            raise ConfigError(f'{at}: a text of class "{name}" is empty; write one or take it out')
        if text in found[name]:
            raise ConfigError(f'{at}: class "{name}" has this text twice; take one out')
        found[name].append(text)
    if without := [name for name, texts in found.items() if not texts]:
        shown = ", ".join(f'"{name}"' for name in without[:_SHOWN_NAMES])
        more = ", …" if len(without) > _SHOWN_NAMES else ""
        raise ConfigError(
            f"{file}: {len(without)} of {len(found)} classes have no text ({shown}{more}); give every class one"
        )
    return {name: tuple(texts) for name, texts in found.items()}


def _starts_word(name: str, place: int) -> bool:
    """Whether a word of a name without spaces starts at a place.

    Digits stay with what is around them ("3D", "4x4", "mp3") unless whole words are: "Run100Meters".
    """
    before, here, after = name[place - 1 : place], name[place], name[place + 1 : place + 2]
    if _is_upper(here):
        return _is_small(before) or ((_is_upper(before) or before.isdigit()) and _is_small(after))
    return here.isdigit() and len(word := name[max(0, place - 3) : place]) == 3 and word.isalpha()


def _is_upper(character: str) -> bool:
    # Not isupper(): some capitals have no small form, and would be joints of a name in lower case again.
    return character != character.lower()


def _is_small(character: str) -> bool:
    return character.isalpha() and not _is_upper(character)


def _checked(template: str, place: str) -> str:
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise ConfigError(f'{place}: must hold {{}} once, where the class name goes, as in "a video of a {{}}."')
    return template


def _rows(file: AnyFile) -> Iterable[tuple[str, str, str]]:
    """Place, class and text of every text in a file."""
    match file.suffix.lower():
        case ".csv":
            return ((at, row["class"], row["text"]) for at, row in csv_rows(file, ("class", "text")))
        case ".json":
            return _json_rows(file)
    raise ConfigError(f"{file}: class texts are read from a .csv or a .json file; name it so")


def _json_rows(file: AnyFile) -> Iterable[tuple[str, str, str]]:
    shape = 'write {"class": "text"} or {"class": ["text", "text"]}'
    try:
        read = parse_json(read_text(file), object_pairs_hook=_Pairs)
    except ValueError as error:
        raise ConfigError(f"{file}: is not JSON ({error}); {shape}") from error
    if not isinstance(read, _Pairs):
        raise ConfigError(f"{file}: holds no texts by class; {shape}")
    seen: set[str] = set()
    for label, texts in read:
        at = f'{file}, class "{_one_line(label)}"'
        if label in seen:
            raise ConfigError(f"{at}: is there twice; put its texts into one list")
        seen.add(label)
        if isinstance(texts, str):
            texts = [texts]
        if isinstance(texts, _Pairs) or not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise ConfigError(f"{at}: is neither a text nor a list of texts; {shape}")
        for text in texts:
            yield at, label, text


def _one_line(text: str) -> str:
    return " ".join(text.split())


class _Pairs(list[tuple[str, object]]):
    """A JSON object with the keys that occur twice."""
